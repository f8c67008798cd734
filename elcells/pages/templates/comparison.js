"use strict";
// What was compared, and the table of modules.
const { classes, modules, changes } = data, BLACK = classes.length, ROWS = 100, MODULES = 10, CELLS = 100;
const WHEN = ["before", "now"], STATES = { n: "new", g: "gone", u: "unchanged" };
const BLACK_WORDS = { n: "newly black", g: "lit again", u: "still black" };
const every = [...classes.keys(), BLACK];  // places in the states of a cell
const colour = k => k < BLACK ? colourOf(k) : verdicts[data.black];
const words = (k, state) => k < BLACK ? `${STATES[state]} ${classes[k]}` : BLACK_WORDS[state];
const WHY = { "!": "uncertain: near the threshold", p: "uncertain: labelled in one record only" };
const isChange = state => state === "n" || state === "g";
const missing = "More is in the folder comparison, which was beside this page. It is not there, or of a newer " +
  "comparison (load this page again).";

const rowOf = (texts, tag = "td") => make("tr", {}, ...texts.map(textContent => make(tag, { textContent })));
const tableOf = (head, rows) => [make("thead", {}, head), make("tbody", {}, ...rows)];

const lost = "Image not there: it was moved, or the page was mailed without its folder.";

// Shows an image, or the small one in the page where its file can't be read: the page was mailed alone.
function show(image, attribute, source, failed) {
  const small = data.small[source];
  image.onerror = () => {
    $("lost").hidden = false;
    if (small && image.getAttribute(attribute) === source) image.setAttribute(attribute, small);
    else failed();
  };
  image.setAttribute(attribute, source);
  return image;
}
// Shows the image of a cell in a box, and the reason in its place where there is none.
function showCell(frame, alt, source) {
  const image = make("img", { alt });
  frame.replaceChildren(image);
  show(image, "src", source, () => frame.replaceChildren(make("span", { textContent: lost })));
  return frame;
}

// Buttons that lead from page to page; go(number) shows one.
function pager(box, count, page, go) {
  const field = make("input", { type: "number", min: 1, max: count, value: page + 1, ariaLabel: "Page" });
  field.addEventListener("change", () => go(Math.max(1, Math.min(count, Math.round(field.value) || 1)) - 1));
  const previous = make("button", { textContent: "Previous", disabled: page === 0, onclick: () => go(page - 1) });
  const next = make("button", { textContent: "Next", disabled: page === count - 1, onclick: () => go(page + 1) });
  box.replaceChildren(...count > 1 ? [previous, "page", field, `of ${count}`, next] : []);
}

// ---- what was compared, and what changed

$("made").textContent = data.made;
$("sides").append(...tableOf(rowOf(["", ...WHEN], "th"), data.sides.map(texts => rowOf(texts))));
$("warnings").append(...data.warnings.map(text =>
  make("p", { className: "warning" }, make("b", { textContent: "Note: " }), text)));
$("total").textContent = data.total;
$("meaning").textContent = data.meaning;
const heads = ["", "new", "uncertain", "gone", "uncertain", "unchanged", "none", "not comparable"];
$("counts").append(...tableOf(rowOf(heads, "th"), data.counts.map((counts, k) => {
  const name = k < BLACK ? classes[k] : "nearly black: newly, lit again, still";
  const row = rowOf([` ${name}`, ...counts.map(n => n.toLocaleString("en"))]);
  row.firstChild.prepend(swatch(colour(k)));
  return row;
})));
for (const [title, names] of data.lists) {
  const items = make("ul", {}, ...names.map(textContent => make("li", { textContent })));
  $("lists").append(make("details", { open: names.length <= 20 }, make("summary", { textContent: title }), items));
}

// ---- the table of modules
// A row is [name, file, serial, new, gone and unchanged of each class and of being nearly black …, uncertain changes, notes].

const FIRST = 3, NOTES = FIRST + 3 * every.length + 1;
let sorted = [...modules.keys()], column = null, down = true, rowsPage = 0;
const isFigure = k => k >= FIRST && k < NOTES;
function tableHead() {
  const groups = every.map(k => make("th", { colSpan: 3 }, swatch(colour(k)), ` ${classes[k] ?? "nearly black"}`));
  const names = ["file", "serial", ...classes.flatMap(() => Object.values(STATES)), "newly", "lit again", "still",
    "uncertain", "notes"];
  const cells = names.map((textContent, i) => {
    const mark = column !== i + 1 ? "" : down ? " ▾" : " ▴";
    const className = textContent === "notes" ? "note" : "";
    return make("th", { className, ariaSort: !mark ? "none" : down ? "descending" : "ascending" },
      make("button", { textContent: textContent + mark, onclick: () => sortBy(i + 1) }));
  });
  return [make("tr", {}, make("th", { colSpan: 2 }), ...groups, make("th"), make("th")), make("tr", {}, ...cells)];
}
function sortBy(k) {
  down = k === column ? !down : isFigure(k);
  column = k;
  const order = (a, b) => isFigure(k) ? a[k] - b[k] : a[k].localeCompare(b[k], undefined, { numeric: true });
  sorted = [...modules.keys()].sort((i, j) => (down ? -1 : 1) * order(modules[i], modules[j]) || i - j);
  showRows(0);
}
function tableRow(i) {
  const [name, file, serial, ...rest] = modules[i], notes = rest.pop();
  const link = make("a", { href: `#module=${name}`, textContent: file });
  const figures = rest.map(n => make("td", { textContent: n, className: n ? "" : "zero" }));
  const note = make("td", { className: "note", textContent: notes });
  return make("tr", {}, make("td", {}, link), make("td", { textContent: serial }), ...figures, note);
}
function showRows(page, size = ROWS) {
  const part = $("search").value.toLowerCase();
  const found = sorted.filter(i => [1, 2, NOTES].some(k => modules[i][k].toLowerCase().includes(part)));
  const some = found.slice(page * size, (page + 1) * size), count = Math.max(1, Math.ceil(found.length / size));
  rowsPage = page;
  $("table").replaceChildren(make("thead", {}, ...tableHead()), make("tbody", {}, ...some.map(tableRow)));
  pager($("table-pages"), count, page, showRows);
  const text = `Rows ${page * size + 1} to ${page * size + some.length} of ${found.length}.`;
  $("rows").textContent = count > 1 ? text : found.length ? "" : "No module is like that.";
}
$("search").addEventListener("input", () => showRows(0));

// ---- groups of cells: a module, or a hundred changed cells with images of their own

async function groupOf(g) {
  const single = g >= modules.length, size = data.modules_per_chunk;
  const name = single ? `cells-${g - modules.length}` : `modules-${Math.floor(g / size)}`;
  return (await needChunk(name))?.[single ? 0 : g % size];
}

// [place in the states, whether it is a change, words] of what there is to say about a cell.
function statements(cell) {
  const all = [...cell.states].map((state, k) => {
    if (k === BLACK) return [k, isChange(state), BLACK_WORDS[state]];
    const figures = WHEN.map((when, side) => {
      const p = cell.p[side][k], more = [cell.measured[side][k], cell.people[side][k]].filter(Boolean).join("; ");
      return `${p === null ? "not judged" : p.toFixed(3)} ${when}${more ? ` (${more})` : ""}`;
    });
    const what = state === "?" ? `${classes[k]} not comparable` : STATES[state] ? words(k, state) : `no ${classes[k]}`;
    const reason = WHY[cell.uncertain[k]];
    return [k, isChange(state), `${what}: ${figures.join(", ")}${reason ? `; ${reason}` : ""}`];
  });
  return all.filter(([, , text]) => text);
}
const linesOf = cell => statements(cell).map(([k, changed, text]) =>
  make("div", { className: changed ? "line change" : "line" }, swatch(colour(k)), make("span", { textContent: text })));
function placeOf(g, cell) {
  if (cell.name) return cell.name;
  const [, file, serial] = modules[g];
  return `${file}${serial ? `, serial ${serial}` : ""}, row ${cell.row}, column ${cell.column}`;
}
