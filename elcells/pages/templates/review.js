"use strict";
// The review page: one cell after another, or on a module's image. review_labels.js has the labels, review_table.js the
// name, the table and the end, review_modules.js the module's image.
const { cells, thresholds, rules, steps } = data;
let mode = "cells", at = 0, light = [1, 1], mapShown = false, shapeShown = false, preload = [], who = "", always = false;
let complete = false;  // the last open cell of the list got a label, and the end screen did not come since
const here = () => mode === "cells" ? cells[at] : boardCell();
const shownCells = () => mode === "cells" ? cells : [...board.cells.values()];
const tell = text => { $("message").textContent = text; };
storageFails = () => tell("This browser stores nothing: save the table before you leave.");

const taken = new Set("nuzmsoel0+-<>".split(""));
const letters = classes.map((name, k) => {
  const free = [...name.toLowerCase()].find(c => /[a-z]/.test(c) && !taken.has(c)) ?? String(k + 1);
  taken.add(free);
  return free;
});

// ---------------------------------------------------------------- labelling

function label(labels) {
  const cell = here();
  if (!cell) return false;
  if (!who) { askName(); return false; }
  const left = counts().left;
  change([[cell.file, { labels, who, when: now() }]], cell.file);
  if (mode === "cells" && left && !counts().left) complete = true;
  return true;
}

function toggle(k) {
  const cell = here(), labels = (labelOf(cell?.file)?.labels ?? classes.map(() => 0)).map(v => v ?? 0);
  labels[k] = 1 - labels[k];
  label(labels.some(Boolean) ? labels : null);
  show();
}

const isAtEnd = () => mode === "cells" && complete && !counts().left;

function settle(value) {
  if (!label(classes.map(() => value))) return;
  if (mode === "modules") nextOnBoard();
  else moveInList(1);
  show();
  if (isAtEnd()) finish();
}

async function undo() {
  const last = undoChange();
  if (!last) return tell("Nothing to undo.");
  await goTo(last.place);
  show();
}

// ---------------------------------------------------------------- moving

function moveInList(step) {
  at = Math.max(0, Math.min(cells.length - 1, at + step));
  remember(itemName("at"), cells[at].file);
}

function move(rows, columns) {
  if (mode === "modules") moveOnBoard(rows, columns);
  else if (columns > 0 && (isAtEnd() || at === cells.length - 1)) return finish();
  else moveInList(columns);
  show();
}

function turnTo(step) {
  if (mode === "modules") openModule(board.number + step).then(show);
}

function firstLeft() {
  if (mode === "modules") firstLeftOnBoard();
  else {
    const left = cells.findIndex(cell => !labelOf(cell.file));
    at = left < 0 ? cells.length - 1 : left;
  }
  show();
}

async function setMode(name) {
  mode = name;
  remember(itemName("mode"), mode);
  document.body.className = name;
  const inAside = mode === "modules";
  (inAside ? $("top") : document.querySelector("main")).prepend($("stage"));
  $("board").hidden = !inAside;
  $("to-cells").setAttribute("aria-pressed", !inAside);
  $("to-modules").setAttribute("aria-pressed", inAside);
  for (const node of document.querySelectorAll(".for-cells, .for-modules")) node.hidden = !node.matches(`.for-${mode}`);
  if (inAside && board.number < 0) await openModule(numberOf.get(recall(itemName("module"))) ?? 0);
  show();
}

// To a cell's file: in the list where it is there and that is shown, else on its module.
async function goTo(file) {
  const number = cells.findIndex(cell => cell.file === file), onBoard = placeOnBoard(file);
  if (mode === "modules" && onBoard || number < 0 && onBoard) {
    if (mode !== "modules") await setMode("modules");
    if (board.number !== onBoard.number) await openModule(onBoard.number);
    Object.assign(board, { row: onBoard.row, column: onBoard.column });
  } else if (number >= 0) {
    at = number;
    if (mode !== "cells") await setMode("cells");
  }
}

// ---------------------------------------------------------------- showing

function counts() {
  const all = shownCells(), given = all.map(cell => labelOf(cell.file)).filter(Boolean);
  const unsure = given.filter(isUnsure).length;
  return { all: all.length, done: given.length - unsure, unsure, left: all.length - given.length };
}

// Whether the network's opinion may be seen: one's own label is given, or the switch is on.
const revealed = cell => always || !!who && labelOf(cell.file)?.who === who;

function show() {
  const cell = here(), given = cell && labelOf(cell.file), { all, done, unsure, left } = counts();
  const cellOfModule = `row ${board.row}, column ${board.column}`;
  $("place").textContent = mode === "cells" ? `${at + 1} / ${cells.length}` : cellOfModule;
  $("bar").max = all || 1;
  $("bar").value = done + unsure;
  $("counts").textContent = `${done} done, ${unsure} unsure, ${left} left`;
  $("who").textContent = who ? `Name: ${who}` : "Your name";
  const by = given ? ` ${given.who} ${timeOf(given.when)}` : "";
  $("said").replaceChildren(words(given), make("span", { id: "by", textContent: by }));
  const title = cell ? titleOf(cell) : "";
  const file = cell && title !== cell.file ? [make("small", { textContent: cell.file })] : [];
  const dark = cell?.dark ? darknessWords(cell.dark, placeOnBoard(cell.file) !== null) : "";
  $("name").replaceChildren(title, ...file, make("span", { id: "dark", textContent: dark }));
  showImage(cell);
  showOpinion(cell);
  const neither = !!given && given.labels.every(v => v === 0), unsureOfAll = !!given && isBlank(given);
  [...classes.map((_, k) => given?.labels[k] === 1), neither, unsureOfAll]
    .forEach((pressed, k) => $("keys").children[k].setAttribute("aria-pressed", pressed));
  if (mode === "modules" && board.module) paintBoard(always);
}

function timeOf(when) {
  const time = new Date(when);
  return isNaN(time) ? when : time.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

function showImage(cell) {
  const image = $("cell");
  if (cell && image.dataset.src !== cell.src) {
    image.dataset.src = cell.src;
    $("gone").hidden = true;
    image.src = cell.src;
    image.alt = cell.file;
    mapShown = shapeShown = false;
    if (mode === "cells")
      preload = [1, 2, 3].filter(k => cells[at + k]).map(k => Object.assign(new Image(), { src: cells[at + k].src }));
  }
  const filter = light[0] === 1 && light[1] === 1 ? "" : `brightness(${light[0]}) contrast(${light[1]})`;
  image.style.filter = $("module").style.filter = filter;
}

function showOpinion(cell) {
  const visible = cell && revealed(cell), any = !!cell && !!(cell.p || cell.why);
  $("opinion").hidden = !any;
  $("hidden").textContent = visible ? "" : `${data.opinion} is hidden until you have labelled the cell.`;
  $("why").textContent = visible ? cell.why : "";
  $("bars").replaceChildren(...(visible && cell.p || []).map((p, k) => {
    const bar = make("i");
    bar.style = `--p:${100 * p}%;--t:${100 * thresholds[k]}%;--colour:${colourOf(k)}`;
    bar.title = `threshold ${thresholds[k]}`;
    return make("div", { className: "bar" }, make("span", { textContent: classes[k] }), bar, p.toFixed(3));
  }));
  $("show-map").hidden = !visible || !cell.maps;
  $("show-map").setAttribute("aria-pressed", mapShown);
  $("show-shape").hidden = !visible || !cell.shape;
  $("show-shape").setAttribute("aria-pressed", shapeShown);
  $("always").setAttribute("aria-pressed", always);
  drawOver();
}

// The class map and the lines over the image, where they are asked for.
function drawOver() {
  const image = $("cell"), cell = here(), visible = !!cell && revealed(cell) && !!image.naturalWidth;
  const { clientWidth, clientHeight } = $("stage"), sides = [image.naturalWidth, image.naturalHeight];
  const scale = Math.min(clientWidth / sides[0], clientHeight / sides[1]);
  $("over").hidden = !visible;
  $("map").hidden = !(mapShown && cell?.maps);
  $("shape").hidden = !(shapeShown && cell?.shape);
  if (!visible) return;
  ["width", "height"].forEach((side, k) => { $("over").style[side] = `${sides[k] * scale}px`; });
  for (const node of [$("map"), $("shape")]) fitOver(node, ...sides);
  if (!$("map").hidden) paintMap($("map"), cell.maps, classes);
  if (!$("shape").hidden) $("shape").src = `data:image/png;base64,${cell.shape}`;
}

function toggleMap() {
  const cell = here();
  if (!cell || !revealed(cell)) return tell("The map comes after your own label (or press o).");
  if (!cell.maps) return tell("There is no map of this cell: it has no defect in sight, was not judged, or the network gives no maps.");
  mapShown = !mapShown;
  show();
}

function toggleShape() {
  const cell = here();
  if (!cell || !revealed(cell)) return tell("The lines come after your own label (or press o).");
  if (!cell.shape) return tell("There are no lines of this cell: the network called no defect, found no line, or gives none.");
  shapeShown = !shapeShown;
  show();
}

function toggleAlways() {
  always = !always;
  remember("review-always", always);
  show();
}

function changeLight(which, factor) {
  light[which] = factor ? Math.max(.2, Math.min(8, light[which] * factor)) : 1;
  show();
}

// ---------------------------------------------------------------- keys, buttons, start

const actions = {
  ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1), ArrowUp: () => move(-1, 0),
  ArrowDown: () => move(1, 0), PageUp: () => turnTo(-1), PageDown: () => turnTo(1), Home: firstLeft,
  n: () => settle(0), u: () => settle(null), z: undo, m: toggleMap, s: toggleShape, o: toggleAlways, e: finish,
  l: openList,
  "+": () => changeLight(0, 1.15), "-": () => changeLight(0, 1 / 1.15), ">": () => changeLight(1, 1.15),
  "<": () => changeLight(1, 1 / 1.15), 0: () => { light = [1, 1]; show(); },
  ...Object.fromEntries(letters.map((letter, k) => [letter, () => toggle(k)])),
};

function openList() {
  if (mode !== "modules") return;
  $("modules").showModal();
  listModules();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, action = actions[key];
  if ($("end").open && [...letters, "n", "u", "z"].includes(key))
    $("end-keys").textContent = `The key ${key} does nothing here: Escape goes back to the cells.`;
  if (action && !document.querySelector("dialog[open]")) { event.preventDefault(); tell(""); action(); }
});
$("stage").addEventListener("wheel", event => {
  event.preventDefault();
  changeLight(event.shiftKey ? 1 : 0, (event.deltaY || event.deltaX) < 0 ? 1.1 : 1 / 1.1);
}, { passive: false });
$("cell").addEventListener("load", drawOver);
$("cell").addEventListener("error", () => {
  $("gone").hidden = false;
  $("gone").textContent = `${here().src} can't be shown: the images must stay where they were.`;
});
$("module").addEventListener("load", () => { fitBoard(); show(); });
$("module").addEventListener("error", () => {
  tellLost(`${board.module.image} can't be shown: it must stay where it was.`);
});
addEventListener("resize", drawOver);
new ResizeObserver(fitBoard).observe($("wall"));
addEventListener("storage", event => {  // the same page in another tab
  const start = itemName("label");
  if (event.key?.startsWith(start)) { takeStored(event.key.slice(start.length), recall(event.key)); show(); }
});

function onClick(id, action) {
  $(id).addEventListener("click", () => { tell(""); action(); $(id).blur(); });
}

const clicks = {
  who: askName, finish, save, "end-save": save, "end-back": () => $("end").close(),
  "show-map": toggleMap, "show-shape": toggleShape, always: toggleAlways, fold: () => $("rules").classList.toggle("open"),
  "to-cells": () => setMode("cells"), "to-modules": () => setMode("modules"),
  before: () => turnTo(-1), after: () => turnTo(1), title: openList,
};
for (const [id, action] of Object.entries(clicks)) onClick(id, action);
$("search").addEventListener("input", listModules);
$("load").addEventListener("change", ({ target }) => {
  if (target.files[0]) load(target.files[0]);
  target.value = "";  // so that the same file can be loaded again
});
document.querySelector("#opening form").addEventListener("submit", () => {
  who = $("own").value.trim() || who;
  remember("review-who", who);
  show();
});

const buttons = [...classes.map((name, k) => [name, letters[k], () => toggle(k)]),
  [classes.length > 1 ? "neither" : "no", "n", actions.n], ["unsure", "u", actions.u],
  ["←", "", actions.ArrowLeft], ["→", "", actions.ArrowRight], ["undo", "z", undo]];
$("keys").append(...buttons.map(([text, letter, action]) => {
  const button = make("button", { textContent: text }, ...letter ? [make("kbd", { textContent: letter })] : []);
  button.addEventListener("click", () => { tell(""); action(); button.blur(); });
  return button;
}));
$("keys").append(make("span", { className: "buttons row" }, ...[...$("keys").children].slice(classes.length + 2)));
$("rules").append(...Object.entries(rules).map(([name, [is, not]]) =>
  make("p", {}, make("b", { textContent: name }), ` is ${is} `, make("b", { textContent: "Not: " }), not)));
$("rules").hidden = !Object.keys(rules).length;
const classKeys = letters.map((letter, k) => `${letter}: ${classes[k]}`).join(", ");
$("labels").textContent = `${classKeys} (again: takes it back). n: ${buttons[classes.length][0]}, u: unsure; both go `
  + "on to the next cell. A cell may have several labels; then go on with →. After the last cell the counts come.";
$("steps").append(make("li", {}, `Move labels.csv from your downloads into the folder ${place}`));
$("steps").append(...steps.map(([text, words]) => make("li", {}, text, commandOf(words.map(inShell).join(" ")))));
$("help").open = innerWidth > 720;
$("its-keys").hidden = !cells.some(cell => cell.p);  // two people's tables have no network

restoreLabels();
who = recall("review-who") ?? "";
always = recall("review-always") ?? false;
at = Math.max(0, cells.findIndex(cell => cell.file === recall(itemName("at"))));
$("tabs").hidden = !listed.length;
const wanted = numberOf.get(/^module=(.*)$/.exec(hashText())?.[1] ?? "");
if (wanted !== undefined) openModule(wanted).then(() => setMode("modules"));
else setMode(listed.length && recall(itemName("mode")) || "cells");
if (!who) askName();
