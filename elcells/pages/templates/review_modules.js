"use strict";
// Labelling on a module's image. data.modules: [name, title, all that is known of it, columns, rows, chunk]; the chunk
// has its cells and nodes.
const listed = data.modules, MATCHES = 200;  // modules of the list at a time
const FINGER = 34;  // least width of a cell in pixels on a phone
// The module that is shown: its number in the list, cells by "row,column", and the one that is selected.
const board = { number: -1, module: null, cells: new Map(), row: 1, column: 1 };
const boardCell = () => board.cells.get(`${board.row},${board.column}`);

// A label's name and colour; calls: 1, 0 or null for each class.
function verdict(calls) {
  const seen = classes.filter((_, k) => calls[k]), name = seen.join(" and ") || "no defect";
  return { name, colour: verdicts[name] ?? colourOf(classes.indexOf(seen[0])) };
}

async function openModule(number) {
  board.number = Math.max(0, Math.min(listed.length - 1, number));
  const wanted = board.number, [name, title, known, , , chunkName] = listed[wanted];
  const module = (await needChunk(chunkName))?.find(m => m.name === name);
  if (board.number !== wanted) return;
  $("title").textContent = `${wanted + 1} / ${listed.length}: ${title}`;
  $("title").title = known;
  remember(itemName("module"), name);
  Object.assign(board, { module: module ?? null, row: 1, column: 1 });
  const { folder, cells = [] } = module ?? {};
  board.cells = new Map(cells.map(([row, column, file, p, maps, dark, shape]) => [`${row},${column}`, {
    file: `cut/${name}/${file}`, src: `${folder}/${file}`, p, maps, dark, shape, why: "", row, column }]));
  $("sheet").hidden = !module;
  if (module) drawBoard(module);
  else tellLost(`${data.chunks}/${chunkName}.js is not there, or newer than this page: load the page again, in its `
    + "results folder.");
}

function tellLost(text) {
  $("lost").textContent = text;
  $("lost").hidden = !text;
}

function drawBoard({ image, nodes, columns }) {
  const corner = (row, column) => [0, 1].map(i => nodes[2 * (row * (columns + 1) + column) + i] + .5);
  const svg = document.querySelector("#sheet svg");
  svg.replaceChildren();
  for (const cell of board.cells.values()) {
    const { row, column } = cell;
    cell.corners = [corner(row - 1, column - 1), corner(row - 1, column), corner(row, column), corner(row, column - 1)];
    cell.outline = drawn("polygon", { points: cell.corners.join(" ") });
    cell.outline.append(drawn("title", {}, `row ${row}, column ${column}`));
    cell.outline.addEventListener("click", () => { Object.assign(board, { row, column }); show(); });
    svg.append(cell.outline);
  }
  svg.append(drawn("polygon", { class: "here", "pointer-events": "none" }));
  tellLost("");
  $("module").src = image;
}

function fitBoard() {
  const { naturalWidth: width, naturalHeight: height } = $("module"), wall = $("wall");
  if (!width || !board.module) return;
  const fits = Math.floor(Math.min(wall.offsetWidth, wall.offsetHeight * width / height));
  const sides = [...board.cells.values()].map(({ corners: [a, b] }) => Math.hypot(b[0] - a[0], b[1] - a[1]));
  const touched = innerWidth <= 720 ? width * FINGER * sides.length / sides.reduce((a, b) => a + b) : 0;
  $("sheet").style.width = `${Math.max(fits, touched)}px`;
  document.querySelector("#sheet svg").setAttribute("viewBox", `0 0 ${width} ${height}`);
}

// Outlines in the colours of people's labels; with `opinions` also dashed ones for the network's calls.
function paintBoard(opinions) {
  const counts = new Map();
  for (const cell of board.cells.values()) {
    const label = labelOf(cell.file), unsure = label && isBlank(label);
    const calls = label?.labels ?? (opinions ? callsOf(cell) : null);
    const kind = unsure ? "unsure" : label ? "labelled" : calls?.some(Boolean) ? "opinion" : "";
    const { name, colour } = calls && kind ? verdict(calls) : {};
    cell.outline.setAttribute("class", kind);
    cell.outline.style.stroke = colour && kind !== "unsure" ? colour : "";
    const text = label ? words(label) : kind ? `${name} (network only)` : "no label yet";
    counts.set(text, { count: (counts.get(text)?.count ?? 0) + 1, kind, colour: colour ?? "var(--unlabelled)" });
  }
  const marks = [...counts].sort().map(([text, { count, kind, colour }]) => {
    const mark = swatch(kind === "unsure" || kind === "opinion" ? "transparent" : colour);
    mark.classList.add(kind || "none");
    if (kind === "opinion") mark.style.borderColor = colour;
    return make("span", {}, mark, ` ${text}: ${count}`);
  });
  $("legend").replaceChildren(...marks);
  const here = document.querySelector("#sheet .here"), cell = boardCell();
  if (!here || !cell) return;
  const middle = [0, 1].map(i => cell.corners.reduce((sum, point) => sum + point[i] / 4, 0));
  const within = cell.corners.map(point => point.map((v, i) => middle[i] + .86 * (v - middle[i])));
  here.setAttribute("points", within.join(" "));
  if ($("wall").scrollWidth > $("wall").clientWidth) here.scrollIntoView({ block: "center", inline: "center" });
}

const callsOf = cell => cell.p && cell.p.map((p, k) => Number(p >= data.thresholds[k]));

// To the cell so many rows and columns away, within the module; whether there is one.
function moveOnBoard(rows, columns) {
  const row = board.row + rows, column = board.column + columns;
  if (board.cells.has(`${row},${column}`)) Object.assign(board, { row, column });
}

function nextOnBoard() {
  const cells = [...board.cells.values()], next = cells[cells.indexOf(boardCell()) + 1];
  if (next) Object.assign(board, { row: next.row, column: next.column });
}

function firstLeftOnBoard() {
  const left = [...board.cells.values()].find(cell => !labelOf(cell.file));
  if (left) Object.assign(board, { row: left.row, column: left.column });
}

// The number in the list of the module to which a cell's file belongs, with its row and column, or null.
const numberOf = new Map(listed.map(([name], number) => [name, number]));
function placeOnBoard(file) {
  const match = /^cut\/([^/]+)\/r(\d+)_c(\d+)\.png$/.exec(file), number = match && numberOf.get(match[1]);
  if (number === null || number === undefined) return null;
  const [row, column] = [Number(match[2]), Number(match[3])], [, , , columns, rows] = listed[number];
  return row >= 1 && row <= rows && column >= 1 && column <= columns ? { number, row, column } : null;
}

// What a cell is called, as in the report.
function titleOf({ file }) {
  const { number, row, column } = placeOnBoard(file) ?? {};
  return number === undefined ? file : `${listed[number][1]}, row ${row}, column ${column}`;
}

// The list of modules, those that match what is searched for.
function listModules() {
  const labelled = new Map();
  for (const file of state.keys()) {
    const place = labelOf(file) && placeOnBoard(file);
    if (place) labelled.set(place.number, (labelled.get(place.number) ?? 0) + 1);
  }
  const wanted = $("search").value.toLowerCase().split(/\s+/);
  const matches = ([, , known]) => wanted.every(word => known.toLowerCase().includes(word));
  const found = [...listed.keys()].filter(number => matches(listed[number]));
  $("found").replaceChildren(...found.slice(0, MATCHES).map(number => {
    const [, , known, columns, rows] = listed[number];
    const count = `${labelled.get(number) ?? 0} of ${columns * rows} labelled`;
    const button = make("button", {}, make("span", { className: "soft", textContent: count }), known);
    button.addEventListener("click", () => { $("modules").close(); openModule(number).then(show); });
    return make("li", {}, button);
  }));
  $("more").textContent = found.length > MATCHES ? `${found.length - MATCHES} more: search for a part of the name.`
    : found.length ? "" : "No module has that in its name.";
}
