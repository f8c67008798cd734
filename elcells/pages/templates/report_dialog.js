"use strict";
// A cell enlarged. Then, since everything is defined here, the start of the page.
const dialog = document.querySelector("dialog");
const enlarged = $("enlarged");
const crop = $("crop");
const map = $("map");
const shape = $("shape");
const STEPS = { back: "ArrowLeft", next: "ArrowRight", up: "ArrowUp", down: "ArrowDown" };
let opened = null;
let isMapShown = false;
let dialogTurn = 0;

// cells: a list, or {length, at(i)}. wide: how many stand in a row. focus(place): goes to a cell's place in the page.
function openCell(cells, place, wide, focus) {
  opened = { cells, place, wide, focus };
  showOpened();
  if (!dialog.open) dialog.showModal();
}

function showOpened() {
  const { cells, place, wide } = opened;
  const cell = cells.at(place);
  const turn = ++dialogTurn;
  $("heading").textContent = titleOf(cell);
  $("facts").replaceChildren(...factsOf(cell));
  for (const [id, key] of Object.entries(STEPS)) {
    $(id).disabled = neighbour(key, place, cells.length, wide) === null;
  }
  $("state").textContent = "";
  crop.hidden = true;
  enlarged.hidden = false;
  enlarged.alt = titleOf(cell);
  enlarged.removeAttribute("src");
  loadAny(enlarged, data.alone || cell.state & UNREADABLE ? [] : [urlOf(cell)], loaded => {
    if (turn !== dialogTurn) return; // another cell was asked for meanwhile
    if (loaded) fitMap();
    else showInstead(cell, turn);
  });
  showMap(cell, turn);
  showShape(cell, turn);
}

// ---- what is said about it

function factsOf(cell) {
  const near = unsureClasses(cell);
  const unsure = near.length ? `. ${unsureWords(cell)} (within 1 logit of its threshold)` : "";
  const verdict = make("b", { textContent: wordsOf(cell) });
  const facts = [make("p", {}, swatch(colourOfKind(kindOf(cell))), " ", verdict, unsure)];
  if (cell.people) facts.push(make("p", { textContent: labelsOf(cell) }));
  if (isJudged(cell)) facts.push(...cell.p.map((p, k) => barOf(p, k, near.includes(k), severityOf(cell, k))));
  if (cell.state & UNREADABLE) facts.push(make("p", { className: "bad", textContent: cell.error }));
  if (cell.module >= 0) {
    const link = make("a", { href: linkOf(cell.module), textContent: "show the module" });
    link.addEventListener("click", () => {
      opened.focus = () => {}; // the page goes to the module
      dialog.close();
    });
    facts.push(make("p", {}, link));
  }
  return facts;
}

function labelsOf(cell) {
  const [values, , when, network] = cell.people;
  const words = value => (value === null ? "unsure" : value ? "yes" : "no");
  const isGiven = value => value !== null || values.every(v => v === null);  // a table may label one class only
  const labels = classes.flatMap((name, k) => isGiven(values[k]) ? [`${name} ${words(values[k])}`] : []).join(", ");
  const before = isJudged(cell) ? `called it ${verdictOf(network)}` : "had no call";
  return `${byPeople(cell)} (${when.slice(0, 10)}: ${labels}). The network ${before}.`;
}

function barOf(p, k, isNear, severity) {
  const bar = make("i", { ariaHidden: "true" });
  const properties = { "--p": `${100 * p}%`, "--t": `${100 * thresholds[k]}%`, "--colour": colourOf(k) };
  for (const [name, value] of Object.entries(properties)) bar.style.setProperty(name, value);
  const number = make("span", { textContent: p.toFixed(3), className: isNear ? "near" : "" });
  const value = make("span", {}, `${classes[k]} `, number, isNear ? " unsure" : "", severity ? ` · ${severity}` : "");
  const threshold = make("span", { className: "soft", textContent: `threshold ${thresholds[k].toFixed(3)}` });
  return make("div", { className: "bar" }, value, threshold, bar);
}

// ---- its image and class map

// Where the file of the cell is not there, it is cut out of the module's image; else its small version is shown.
async function showInstead(cell, turn) {
  const found = cell.module < 0 ? null : await moduleData(cell.module);
  const image = new Image();
  const loaded = found && (await new Promise(then => loadAny(image, moduleImages(cell.module), then)));
  if (turn !== dialogTurn) return;
  const thumb = first.thumbs[cell.number];
  if (loaded) {
    cutOut(cell, found, image);
    fitMap();
    $("state").textContent = "Cut out of the module's image, because the file of the cell is not beside this page.";
  } else if (thumb) {
    enlarged.onerror = null;
    enlarged.src = thumb;
    $("state").textContent = "A small version, because the file of the cell is not where it was.";
  } else if (!(cell.state & UNREADABLE)) {
    $("state").textContent = "The image of this cell is not in this page, and not where it was.";
  }
}

function cutOut(cell, found, image) {
  const corners = cornersOf(cell.module, found, (cell.row - 1) * modules.columns[cell.module] + cell.column - 1);
  const [width, height] = cutSize(cell.module, corners);
  crop.width = 400;
  crop.height = Math.max(1, Math.round((crop.width * height) / width));
  const context = crop.getContext("2d");
  context.setTransform(new DOMMatrix().scale(crop.width, crop.height).multiply(frameOf(corners).inverse()));
  context.drawImage(image, 0, 0, ...sizeOf(cell.module, found)); // it may have been made smaller
  crop.hidden = false;
  enlarged.hidden = true;
}

async function showMap(cell, turn) {
  map.hidden = true;
  $("unmapped").textContent = "";
  $("see").setAttribute("aria-pressed", isMapShown);
  if (!isMapShown) return;
  const values = await mapOf(cell);
  if (turn !== dialogTurn || !isMapShown) return;
  if (!values) {
    $("unmapped").textContent = whyUnmapped(cell);
    return;
  }
  paintMap(map, values, classes);
  fitMap();
  map.hidden = false;
}

function whyUnmapped(cell) {
  if (!(cell.state & MAPPED)) return "This cell has no class map: judged cells with a defect or near a threshold have one, if the network gives maps.";
  if (data.alone) return "The class map of this cell is left out of this file, to keep it small enough for mail.";
  return `The class maps are in the folder ${data.chunks} beside this page, which is not there or of a newer report.`;
}

async function mapOf(cell) {
  if (first.maps[cell.number] || cell.number < 0 || data.alone) return first.maps[cell.number];
  const chunk = await needChunk(`maps-${Math.floor(cell.number / data.cells_a_file)}`);
  return chunk?.[cell.number];
}

async function showShape(cell, turn) {
  shape.hidden = true;
  const source = await shapeOf(cell);
  if (turn !== dialogTurn || !source) return;
  shape.src = source;
  fitMap();
  shape.hidden = false;
}

// Lays the class map and the lines over the image.
function fitMap() {
  const sides = crop.hidden ? [enlarged.naturalWidth, enlarged.naturalHeight] : [crop.width, crop.height];
  if (!sides[0]) return;
  for (const node of [map, shape]) fitOver(node, ...sides);
}

// ---- keys and buttons

function step(key) {
  const place = neighbour(key, opened.place, opened.cells.length, opened.wide);
  if (place === null) return;
  opened.place = place;
  showOpened();
}

function toggleMap() {
  isMapShown = !isMapShown;
  showMap(opened.cells.at(opened.place), dialogTurn);
}

document.addEventListener("keydown", event => {
  if (!dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.toLowerCase() === "m") toggleMap();
  if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") {
    step(event.key);
    event.preventDefault();
  }
});
dialog.addEventListener("close", () => opened.focus(opened.place));
dialog.addEventListener("click", event => {
  if (event.target === dialog) dialog.close();
});
for (const [id, key] of Object.entries(STEPS)) $(id).addEventListener("click", () => step(key));
$("see").addEventListener("click", toggleMap);
if (hasSeverity) $("see").after(shapeButton());
$("close").addEventListener("click", () => dialog.close());

// ---- start

function showAllModules() {
  prepareModules();
  const find = showTable(order => {
    moduleOrder = order;
    showModules(0);
  });
  addEventListener("hashchange", () => goToModule(find));
  document.addEventListener("click", event => {
    // The address stays the same, but the module may be out of sight
    if (event.target.hash && event.target.hash === location.hash) goToModule(find);
  });
  goToModule(find);
}

showHead();
showCounts();
showNotes();
if (modules.name.length) showAllModules();
if (data.shown) {
  prepareCells();
  showSorted();
  loadCells();
}
showHistograms();
showFolders();
