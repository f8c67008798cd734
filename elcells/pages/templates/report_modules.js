"use strict";
// Images of the modules with the outline of each cell, some on a page.
const MODULE_SIZES = [6, 24, 96];
const LEAST_WIDTH = 28; // pixels of a cell's probability on the screen
const MOST_WIDTH = 4000; // of an image that is widened for them
let moduleOrder = worstFirst;
let moduleSize = MODULE_SIZES[0];
let moduleTurn = 0;
let modulePagers = [];

function legendOf(entries) {
  const parts = entries.map(([colour, text]) => make("span", {}, swatch(colour), ` ${text}`));
  return make("div", { className: "legend" }, ...parts);
}

function legendOfAll() {
  const both = [verdicts["crack and inactive"], classes.length > 2 ? "several" : "both"];
  const legend = legendOf([
    ...classes.map((name, k) => [colourOfKind(1 << k), name]),
    ...(classes.length > 1 ? [both] : []),
    [verdicts["no defect"], "no defect (thin line)"],
    [verdicts.dark, "dark or partly dark, but no defect"],
    [verdicts["nearly black"], "nearly black, not judged"],
  ]);
  const dashed =
    "dashed line: corrected by a person, or judged by a person alone, in the colour of what the person said";
  legend.append(make("span", {}, make("i", { className: "line" }), dashed));
  return legend;
}

// In a single file: how many modules it has no room for.
function leftOut() {
  const here = Object.keys(first.modules).length;
  const others = modules.name.length - here;
  if (!data.alone || !others) return "";
  const images = `The images of the ${said(here)} worst modules are in this file`;
  return `${images}; those of the other ${said(others)} are left out to keep it small enough for mail.`;
}

function prepareModules() {
  const order = classes.length > 1 ? ", from above" : "";
  const explained =
    "A click on a cell, or Enter, enlarges it. Probabilities are shown of cells with a defect and of unsure ones: " +
    `${listed(classes)}${order}; what makes a cell unsure is underlined.`;
  const toggle = make("button", { textContent: "Probabilities", ariaPressed: "false" });
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-pressed", $("modules").classList.toggle("with-p"));
  });
  const pagers = [0, 1].map(() => make("div", { className: "pager screen" }));
  const choice = sizeChoice(MODULE_SIZES, worstFirst.length, size => { moduleSize = size; showModules(0); }, "modules");
  const hint = make("span", { className: "screen", textContent: explained });
  $("modules").append(
    make("h2", { textContent: "Images of the modules" }),
    legendOfAll(),
    make("p", { className: "soft" }, "In the order of the table. ", hint),
    ...paragraphs(leftOut()),
    make("div", { className: "tools screen" }, toggle, hasSeverity ? shapeButton() : "", choice, pagers[0]),
    make("div", { id: "figures" }),
    pagers[1],
  );
  modulePagers = pagers.map(pager => makePager(pager, showModules, "modules"));
}

// ---- one module

// Its cells; they know their number among the shown cells.
function cellsOfModule(n, found) {
  let number = found.first;
  return found.state.map((state, i) => cellOf(found, i, state & SHOWN ? number++ : -1, n));
}

// Width and height of its image in pixels; where that is gone, those that the nodes need.
function sizeOf(n, found) {
  if (modules.size[n][0]) return modules.size[n];
  return [0, 1].map(k => Math.ceil(Math.max(...found.nodes.filter((_, i) => i % 2 === k))) + 1);
}

// Corners of a cell in pixels of the module's image, clockwise from the upper left; nodes count from pixels' middles.
function cornersOf(n, found, place) {
  const wide = modules.columns[n];
  const at = Math.floor(place / wide) * (wide + 1) + (place % wide);
  const nodes = [at, at + 1, at + wide + 2, at + wide + 1];
  return nodes.map(k => [found.nodes[2 * k] + 0.5, found.nodes[2 * k + 1] + 0.5]);
}

const middleOf = corners => [0, 1].map(k => summed(corners.map(corner => corner[k])) / corners.length);

function captionOf(n, cells) {
  const known = modules.metadata.flatMap(([name, values]) => (values[n] ? [`${name} ${values[n]}`] : []));
  const size = `${modules.columns[n]}x${modules.rows[n]} cells of ${modules.pixels[n]} pixels`;
  const parts = [make("b", { textContent: modules.file[n] }), `: ${[...known, size].join(", ")}.`];
  if (modules.pixels[n] < data.fine_cracks) {
    parts.push(` Under ${data.fine_cracks} pixels a cell: fine cracks will be missed.`);
  }
  if (modules.doubt[n]) {
    parts.push(" ", make("b", { className: "bad", textContent: `Not sure: ${modules.doubt[n]}.` }));
  }
  const kinds = cells.map(kindOf);
  const counts = inOrder(new Set(kinds)).map(kind => [kind, kinds.filter(other => other === kind).length]);
  parts.push(legendOf(counts.map(([kind, number]) => [colourOfKind(kind), `${kindName(kind)}: ${number}`])));
  return make("figcaption", {}, ...parts);
}

function moduleFigure(n, found) {
  const figure = make("figure", { className: "module", id: `module-${n}` });
  if (!found) {
    const why = data.alone
      ? "Its image and cells are left out of this file, to keep it small."
      : `Its data are in the folder ${data.chunks} beside this page, which is not there or of a newer report ` +
        "(load this page again).";
    figure.append(captionOf(n, []), make("p", { className: "bad", textContent: why }));
    return figure;
  }
  const cells = cellsOfModule(n, found);
  const lost = make("p", { className: "bad" });
  const view = viewOf(n, found, cells, loaded => {
    if (!loaded) lost.textContent = "The image of this module is not there: it belongs into the folder modules.";
  });
  figure.append(captionOf(n, cells), make("div", { className: "wide" }, view), lost);
  return figure;
}

// The image with outlines and probabilities; then(loaded) is told whether the image is there.
function viewOf(n, found, cells, then) {
  const [width, height] = sizeOf(n, found);
  const image = make("img", { width, height, alt: `Electroluminescence image of module ${moduleTitle(n)}` });
  loadAny(image, moduleImages(n), then);
  const corners = cells.map((_, i) => cornersOf(n, found, i));
  const outlines = cells.map((cell, i) => outlineOf(cell, corners[i]));
  const defectsLast = [...cells.keys()].sort((a, b) => Boolean(cells[a].state) - Boolean(cells[b].state));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "group" });
  svg.append(...defectsLast.map(i => outlines[i]));
  addShapes(svg, n, cells, corners);
  walkByKeys(outlines, modules.columns[n], (i, go) => openCell(cells, i, modules.columns[n], go));
  const texts = cells.flatMap((cell, i) => textOn(cell, corners[i], width, height));
  const view = make("div", { className: "view" }, image, svg, ...texts);
  const narrowest = Math.min(...corners.map(([a, b, c, d]) => Math.min(b[0] - a[0], c[0] - d[0])));
  view.style.setProperty("--ratio", width / height);
  view.style.setProperty("--wide", Math.min(MOST_WIDTH, (LEAST_WIDTH * width) / Math.max(1, narrowest)));
  return view;
}

function textOn(cell, corners, width, height) {
  if (!isJudged(cell) || !(cell.calls || cell.state & UNSURE)) return [];
  const near = unsureClasses(cell);
  const lines = cell.p.map((p, k) => {
    const className = near.includes(k) ? "near" : "";
    return make(isCalled(cell.calls, k) ? "b" : "div", { textContent: p.toFixed(2), className });
  });
  const text = make("span", {}, ...lines);
  const [x, y] = middleOf(corners);
  Object.assign(text.style, { left: `${(100 * x) / width}%`, top: `${(100 * y) / height}%` });
  return [text];
}

function outlineOf(cell, corners) {
  const isDefect = cell.calls || cell.state & (DARK | BLACK);
  const isMarked = isDefect || followsPeople(cell);
  const inset = isMarked ? 0.95 : 1;
  const [x, y] = middleOf(corners);
  const inside = corners.map(corner => [x + (corner[0] - x) * inset, y + (corner[1] - y) * inset]);
  const name = `row ${cell.row}, column ${cell.column}: ${describe(cell)}`;
  const shape = drawn("polygon", {
    points: inside.map(point => point.map(v => v.toFixed(1)).join()).join(" "),
    class: `${isDefect ? "defect" : ""} ${followsPeople(cell) ? "corrected" : ""}`,
    tabindex: -1,
    role: "button",
    "aria-label": name,
  });
  shape.style.setProperty("--c", colourOfKind(kindOf(cell)));
  shape.append(drawn("title", {}, name));
  return shape;
}

function describe(cell) {
  const parts = [wordsOf(cell)];
  if (unsureWords(cell)) parts.push(unsureWords(cell));
  if (cell.people) parts.push(byPeople(cell));
  const p = isJudged(cell) ? ` (${classes.map((_, k) => classWords(cell, k)).join(", ")})` : "";
  return parts.join(", ") + p;
}

// One cell of a module is reached by Tab, the others from there by arrow keys.
function walkByKeys(shapes, wide, open) {
  let reached = 0;
  const go = to => {
    shapes[reached].setAttribute("tabindex", -1);
    shapes[to].setAttribute("tabindex", 0);
    shapes[to].focus();
    reached = to;
  };
  shapes[0].setAttribute("tabindex", 0);
  shapes.forEach((shape, i) => {
    shape.addEventListener("click", () => open(i, go));
    shape.addEventListener("keydown", event => {
      const to = neighbour(event.key, i, shapes.length, wide);
      if (event.key === "Enter" || event.key === " ") open(i, go);
      else if (to === null) return;
      else go(to);
      event.preventDefault();
    });
  });
}

// The place that an arrow key, Home or End leads to from place i of so many, in rows of `wide`, or null.
function neighbour(key, i, count, wide) {
  const end = { Home: 0, End: count - 1 }[key];
  if (end !== undefined) return end === i ? null : end;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[key];
  return step && i + step >= 0 && i + step < count ? i + step : null;
}

// ---- a page of them

async function showModules(page) {
  const turn = ++moduleTurn;
  const numbers = moduleOrder.slice(page * moduleSize, (page + 1) * moduleSize);
  const found = await Promise.all(numbers.map(moduleData));
  if (turn !== moduleTurn) return; // another page was asked for meanwhile
  $("figures").replaceChildren(...numbers.map((n, i) => moduleFigure(n, found[i])));
  modulePagers.forEach(update => update(page, Math.ceil(moduleOrder.length / moduleSize)));
}

// Goes to the module that the URL names: #module=NAME. find: of the table.
async function goToModule(find) {
  const name = /^module=(.+)$/.exec(hashText())?.[1];
  const n = name ? modules.name.indexOf(name) : -1;
  if (n < 0) return;
  if (!moduleOrder.includes(n)) find("");
  await showModules(Math.floor(moduleOrder.indexOf(n) / moduleSize));
  $(`module-${n}`)?.scrollIntoView();
}
