"use strict";
// The images of modules with the outlines of their cells.
// Width of an outline, and its dashes, by a cell's side: they hide as little of a small cell as of a large one.
const LINES = { new: [0.07], gone: [0.05, 0.15, 0.1], unchanged: [0.03], unknown: [0.03, 0.04, 0.08] };
const EDGE = 0.04, NEXT = 0.075;  // how far inside of the cell the first outline is, and each further one

// Outlines of a cell, one inside the other, for each class with a defect and for being nearly black.
function outlines(cell, side) {
  const points = cell.at[side], mean = axis => points.reduce((sum, p) => sum + p[axis], 0) / points.length;
  const middle = [mean(0), mean(1)], drawnStates = every.filter(k => STATES[cell.states[k]]);
  const length = Math.hypot(points[1][0] - points[0][0], points[1][1] - points[0][1]);
  return (drawnStates.length ? drawnStates : [null]).map((k, depth) => {
    const inwards = 2 * (EDGE + NEXT * depth), moved = (v, axis) => (v + inwards * (middle[axis] - v) + 0.5).toFixed(1);
    const inner = points.map(p => p.map(moved)), name = STATES[cell.states[k]] ?? "unknown";
    const [width, ...dashes] = LINES[name].map(share => (share * length).toFixed(2));
    const line = { "stroke-width": width, "stroke-dasharray": dashes.join(" ") || "none" };
    const shape = drawn("polygon", { points: inner.join(" "), class: name, ...line });
    shape.style.setProperty("--colour", k === null ? "#fff" : colour(k));
    return shape;
  });
}
function imageOf(group, side, open) {
  const [width, height] = group.sizes[side], svg = drawn("svg", { viewBox: `0 0 ${width} ${height}` });
  const image = drawn("image", { width, height });
  const style = { "text-anchor": "middle", fill: "#fff", "font-size": width / 36 };
  const note = drawn("text", { x: width / 2, y: height / 2, ...style });
  show(image, "href", group.images[side], () => { note.textContent = lost; });
  svg.append(image, note);
  group.cells.forEach((cell, i) => {
    const points = cell.at[side].map(p => p.map(v => v + 0.5)).join(" ");
    const text = `row ${cell.row}, column ${cell.column}: ${statements(cell).map(([, , words]) => words).join("; ")}`;
    const area = drawn("polygon", { points, class: "area", tabindex: 0, role: "button", "aria-label": text });
    area.append(drawn("title", {}, text));
    area.addEventListener("click", () => open(i));
    area.addEventListener("keydown", event => {
      if (event.key !== "Enter") return;
      event.preventDefault();  // else the key also presses a button of the dialog
      open(i);
    });
    svg.append(...outlines(cell, side), area);
  });
  return svg;
}
function moduleFigure(g, group) {
  const [name, file, serial, ...figures] = modules[g], notes = figures.pop();
  const counts = every.flatMap(k => ["n", "g", "u"].map((state, i) => [figures[3 * k + i], words(k, state)]));
  const text = counts.filter(([count]) => count).map(([count, word]) => `${count} ${word}`).join(", ");
  const caption = make("figcaption", {}, make("b", { textContent: file + (serial ? `, serial ${serial}` : "") }),
    `: ${text || "no defect in either image"}. `);
  if (notes) caption.append(make("b", { className: "bad", textContent: `Note: ${notes}.` }));
  const figure = make("figure", { className: "module", id: `module=${name}` }, caption);
  const list = group.cells.map((_, i) => [g, i]);
  figure.append(make("div", { className: "pair" }, ...WHEN.map((_, side) => make("figure", {},
    make("figcaption", { className: "file", textContent: group.captions[side] }),
    imageOf(group, side, i => enlarge(list, i))))));
  return figure;
}
let modulesPage = null, modulesTurn = 0;
async function showModules(page) {
  const turn = ++modulesTurn, wanted = [...modules.keys()].slice(page * MODULES, (page + 1) * MODULES);
  const groups = await Promise.all(wanted.map(groupOf));
  if (turn !== modulesTurn) return;
  modulesPage = page;
  const figures = wanted.flatMap((g, i) => groups[i] ? [moduleFigure(g, groups[i])] : []);
  const gap = figures.length < wanted.length ? [make("p", { className: "bad", textContent: missing })] : [];
  $("modules").replaceChildren(...figures, ...gap);
  pager($("module-pages"), Math.ceil(modules.length / MODULES), page, showModules);
}
async function followHash() {
  const name = hashText().replace("module=", "");
  const g = modules.findIndex(row => row[0] === name), page = Math.floor(Math.max(g, 0) / MODULES);
  if (page !== modulesPage) await showModules(page);
  if (g >= 0) $(`module=${name}`)?.scrollIntoView();
}
addEventListener("hashchange", followHash);

function sample(name, text) {
  const svg = drawn("svg", { viewBox: "0 0 40 16", "aria-hidden": "true" });
  svg.append(drawn("line", { x1: 2, x2: 38, y1: 8, y2: 8, class: name }));
  return make("li", {}, svg, text);
}
$("legend").append(...every.map(k => make("li", {}, swatch(colour(k)), classes[k] ?? "nearly black, not judged")),
  sample("new", "thick: new"), sample("gone", "dashed: gone, or lit again"), sample("unchanged", "thin: in both"),
  sample("unknown", "dotted: not comparable"),
  make("li", { textContent: "Several in a cell: one outline inside the other." }));
