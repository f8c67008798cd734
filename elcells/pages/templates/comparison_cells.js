"use strict";
// Changed cells, enlarged ones, and the start.
// A change is [group, place in it, two letters for each state: the state, and why it is uncertain, see WHY].

const at = (mask, k) => mask[2 * k], why = (mask, k) => mask[2 * k + 1];
const isCertain = (mask, k) => isChange(at(mask, k)) && !WHY[why(mask, k)];
const kinds = { all: () => true };
for (const k of every) for (const state of "ng") kinds[words(k, state)] = mask => at(mask, k) === state;
kinds["only certain"] = mask => every.some(k => isCertain(mask, k));
kinds["only uncertain"] = mask => !every.some(k => isCertain(mask, k));
kinds["labelled in one record only"] = mask => every.some(k => why(mask, k) === "p");
let kind = "all", cellsTurn = 0;
const buttons = Object.entries(kinds).map(([name, is]) => {
  const count = changes.filter(([, , mask]) => is(mask)).length, show = () => { kind = name; showCells(0); };
  const button = make("button", { textContent: `${name} ${count}`, disabled: !count, onclick: show });
  button.dataset.kind = name;
  return button;
});
if (changes.length) $("kinds").append(...buttons);
function cellItem(list, i, group) {
  const [g, place] = list[i], cell = group.cells[place];
  const images = WHEN.map((alt, side) => showCell(make("div", { className: "frame" }), alt, cell.src[side]));
  const button = make("button", { onclick: () => enlarge(list, i) }, make("div", { className: "pair" }, ...images));
  return make("li", {}, button, ...linesOf(cell), make("div", { className: "file", textContent: placeOf(g, cell) }));
}
async function showCells(page) {
  const turn = ++cellsTurn, list = changes.filter(([, , mask]) => kinds[kind](mask)), from = page * CELLS;
  const some = list.slice(from, from + CELLS), groups = await Promise.all(some.map(([g]) => groupOf(g)));
  if (turn !== cellsTurn) return;
  buttons.forEach(button => button.setAttribute("aria-pressed", button.dataset.kind === kind));
  $("cells").replaceChildren(...groups.flatMap((group, i) => group ? [cellItem(list, from + i, group)] : []));
  pager($("cell-pages"), Math.max(1, Math.ceil(list.length / CELLS)), page, showCells);
  const part = `Cells ${from + 1} to ${from + some.length} of ${list.length}.`;
  const all = !changes.length ? "No cell changed." : list.length > CELLS ? part : "";
  $("shown").textContent = groups.includes(undefined) ? `${all} ${missing}` : all;
}

// ---- enlarged

const box = document.querySelector("dialog"), enlarged = box.querySelectorAll(".frame");
let opened = null;
async function enlarge(list, i) {
  const [g, place] = list[i], cell = (await groupOf(g))?.cells[place];
  if (!cell) return;
  opened = { list, i };
  enlarged.forEach((frame, side) => showCell(frame, WHEN[side], cell.src[side]));
  $("about").replaceChildren(make("b", { textContent: placeOf(g, cell) }), ...linesOf(cell));
  $("previous").disabled = i === 0;
  $("next").disabled = i === list.length - 1;
  if (!box.open) box.showModal();
}
function step(by) {
  if (opened?.list[opened.i + by]) enlarge(opened.list, opened.i + by);
}
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => box.close());
box.addEventListener("click", event => { if (event.target === box) box.close(); });
document.addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!box.open || !by) return;
  event.preventDefault();
  step(by);
});

addEventListener("beforeprint", () => {
  if (modules.length && modules.length <= 500) showRows(0, 500);
});
addEventListener("afterprint", () => { if (modules.length) showRows(rowsPage); });

if (modules.length) {
  showRows(0);
  followHash();
} else $("of-modules").hidden = true;
showCells(0);
