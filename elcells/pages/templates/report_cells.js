"use strict";
// The grid of the cells that are to be looked at, by pages.
const CELLS_A_PAGE = 200;
const EAGER_AFTER = 500; // ms
let columns = first.cells; // until the chunk "cells" is there
let kind = "all";
let sorting = "surest first";
let visible = [];
let cellPage = 0;
let eagerTimer = 0;
const cellAt = i => cellOf(columns, i, columns.index ? columns.index[i] : i);

// ---- which, and in which order

// Names of filters: [number of cells, function that tells whether cell i belongs to it].
function filters() {
  const has = bit => i => columns.state[i] & bit;
  const called = inOrder(Object.keys(data.kinds).map(Number)).filter(value => value > 0);
  return {
    all: [data.shown, () => true],
    ...Object.fromEntries(called.map(value => [kindName(value), [data.kinds[value], i => columns.calls[i] === value]])),
    unsure: [data.unsure, has(UNSURE)],
    dark: [data.dark, has(DARK)],
    "nearly black": [data.kinds[BLACK_KIND] ?? 0, has(BLACK)],
    unreadable: [data.kinds[UNREADABLE_KIND] ?? 0, has(UNREADABLE)],
    labelled: [summed(data.people.who.map(([, n]) => n)), has(LABELLED)],
    corrected: [data.corrected, has(CORRECTED)],
  };
}

function doubtOf(i) {
  return columns.p[0][i] < 0 ? Infinity : Math.min(...columns.p.map((of, k) => distanceOf(of[i] / SCALE, k)));
}

function surestCall(i) {
  const least = columns.calls[i] ? 0 : columns.state[i] & DARK ? -0.5 : -1; // dark cells come after all calls
  return Math.max(least, ...columns.p.map((of, k) => (isCalled(columns.calls[i], k) ? of[i] : -1)));
}

const byClass = classes.map((name, k) => {
  return [`by ${name}`, [i => -columns.p[k][i], `By the probability of ${name}, the highest first.`]];
});
const orders = {
  "surest first": [i => -surestCall(i), "Cells with a defect first, by the probability of what they are called; then dark ones."],
  "least sure first": [doubtOf, "Cells whose probability is nearest to a threshold first."],
  ...Object.fromEntries(byClass),
  ...severityOrders(),
  "by file": [null, "By the path of the image, then by row and column in the module."],
};
const allFilters = filters();

function sortCells() {
  const [, belongs] = allFilters[kind];
  const [key] = orders[sorting];
  visible = [];
  for (let i = 0; i < columns.state.length; i++) if (belongs(i)) visible.push(i);
  if (!key) return;
  const keys = new Float64Array(columns.state.length);
  for (const i of visible) keys[i] = key(i);
  visible.sort((a, b) => keys[a] - keys[b] || a - b);
}

// ---- a page of them

function imageOf(cell, alt) {
  if (cell.state & UNREADABLE) return make("div", { className: "none", textContent: "unreadable" });
  const image = make("img", { loading: "lazy", alt, width: 150, height: 150 });
  const box = make("div", { className: "pic" }, image);
  addShape(box, image, cell);
  const urls = [first.thumbs[cell.number], data.alone ? "" : urlOf(cell)].filter(Boolean);
  loadAny(image, urls, loaded => {
    if (!loaded) image.alt = "The image is not there.";
  });
  return box;
}

function tileOf(place) {
  const cell = cellAt(visible[place]);
  const title = titleOf(cell);
  const button = make("button", { ariaLabel: `${title}: ${wordsOf(cell)}` }, imageOf(cell, title));
  const all = { length: visible.length, at: i => cellAt(visible[i]) };
  button.addEventListener("click", () => openCell(all, place, tilesInRow(), focusTile));
  const near = unsureClasses(cell);
  const lines = cell.p.flatMap((p, k) => {
    const severity = severityOf(cell, k);
    const below = severity ? [make("div", { className: "severity", textContent: severity })] : [];
    if (p === null) return below;
    const number = make("span", { textContent: p.toFixed(3), className: near.includes(k) ? "near" : "" });
    const parts = [make("span", { textContent: classes[k] }), number];
    const className = `p ${isCalled(cell.calls, k) ? "yes" : ""}`;
    return [make("div", { className }, swatch(colourOf(k)), ...parts), ...below];
  });
  const marks = [
    cell.state & BLACK && wordsOf(cell),
    darkWords(cell),
    unsureWords(cell),
    cell.people && byPeople(cell),
    cell.state & UNREADABLE && cell.error,
  ];
  const texts = marks.filter(Boolean).map(textContent => make("div", { className: "mark", textContent }));
  return make("li", {}, button, ...lines, ...texts, make("div", { className: "file", textContent: title }));
}

const tilesInRow = () => getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;

// Goes to the tile of a cell, by its place in the order.
function focusTile(place) {
  const page = Math.floor(place / CELLS_A_PAGE);
  if (page !== cellPage) showCells(page);
  $("grid").children[place % CELLS_A_PAGE].querySelector("button").focus();
}

function showCells(page) {
  cellPage = page;
  const start = page * CELLS_A_PAGE;
  const end = Math.min(visible.length, start + CELLS_A_PAGE);
  $("grid").replaceChildren(...Array.from({ length: end - start }, (_, i) => tileOf(start + i)));
  clearTimeout(eagerTimer); // what nobody has scrolled to is loaded last, but it is: a print has all images
  eagerTimer = setTimeout(() => {
    for (const image of $("grid").querySelectorAll("img")) image.loading = "eager";
  }, EAGER_AFTER);
  cellPagers.forEach(update => update(page, Math.ceil(visible.length / CELLS_A_PAGE)));
  for (const button of $("filters").children) button.setAttribute("aria-pressed", button.dataset.kind === kind);
  const part = `Shown are ${said(start + 1)} to ${said(end)} of ${said(visible.length)}; the print has the same.`;
  $("order").textContent = `${orders[sorting][1]} ${visible.length > CELLS_A_PAGE ? part : ""}`;
}

function showSorted() {
  sortCells();
  showCells(0);
}

function filterButtons() {
  return Object.entries(allFilters).flatMap(([name, [count]]) => {
    if (!count) return [];
    const button = make("button", { textContent: `${name} ${said(count)}` });
    button.dataset.kind = name;
    button.addEventListener("click", () => {
      kind = name;
      showSorted();
    });
    return [button];
  });
}

// Which cells are shown, and what the others are.
function aboutShown() {
  const kinds = [
    summed(Object.entries(data.kinds).map(([value, n]) => (value > 0 ? n : 0))) && "with a defect",
    data.unsure && "unsure (within 1 logit of a threshold)",
    data.dark && "dark",
    data.kinds[BLACK_KIND] && "nearly black",
    data.kinds[UNREADABLE_KIND] && "unreadable",
    data.people.who.length && "labelled by people",
  ];
  const others = summed(Object.values(data.kinds)) - data.shown;
  const rest = others === 1 ? "The other cell has no defect." : `The other ${said(others)} cells have no defect.`;
  return `${counted(data.shown, "cell")} to look at: ${listed(kinds.filter(Boolean), "or")}. ${others ? rest : ""}`;
}

function prepareCells() {
  $("which").textContent = aboutShown();
  $("filters").append(...filterButtons());
  const select = $("sorting");
  select.append(...Object.keys(orders).map(name => make("option", { textContent: name })));
  select.addEventListener("change", () => {
    sorting = select.value;
    showSorted();
  });
  if (hasSeverity) select.after(shapeButton());
  $("cells").hidden = false;
}

// Takes all cells in place of those that the page holds, or says that they are missing.
async function loadCells() {
  const here = columns.state.length;
  if (here === data.shown) return;
  const all = data.alone ? null : await needChunk("cells");
  if (all) {
    columns = all;
    return showSorted();
  }
  const why = data.alone
    ? "the others are left out to keep it small enough for mail, and are in the report.html of the results folder."
    : `the others are in the folder ${data.chunks} beside this page, which is not there or of a newer report ` +
      "(load this page again).";
  const special = data.corrected || data.dark || data.kinds[BLACK_KIND] ? "corrected and dark ones and " : "";
  const which = `Only ${said(here)} of these cells are in this file, ${special}the surest defects`;
  $("missing").textContent = `${which}; ${why}`;
  $("missing").hidden = false;
}

const cellPagers = [...$("cells").querySelectorAll(".pager")].map(box => makePager(box, showCells, "cells"));
