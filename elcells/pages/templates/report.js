"use strict";
// The report: what a cell is and what it is called. Head, tables, modules, cells and dialog have their own scripts.
const { classes, thresholds, modules } = data;
const first = chunks.first; // what the page holds itself
// Bits of a state, as in report_data.py
const [UNSURE, BLACK, UNREADABLE, LABELLED, CORRECTED, SHOWN, MAPPED, DARK] = [1, 2, 4, 8, 16, 32, 64, 128];
const [DARK_KIND, BLACK_KIND, UNREADABLE_KIND] = [-1, -2, -3]; // the other kinds are a cell's calls as bits
const SCALE = 1e4; // of probabilities
const said = n => n.toLocaleString("en");
const counted = (n, noun, plural = noun + "s") => `${said(n)} ${n === 1 ? noun : plural}`;
const percent = (n, of) => (of ? `${((100 * n) / of).toFixed(1)} %` : "");
const summed = numbers => numbers.reduce((all, n) => all + n, 0);
const listed = (names, and = "and") =>
  names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} ${and} ${names.at(-1)}`;
const isCalled = (calls, k) => (calls >> k) & 1;

function paragraphs(...texts) {
  return texts.filter(Boolean).map(textContent => make("p", { textContent }));
}

// ---- kinds of cells

function verdictOf(calls) {
  return classes.filter((_, k) => isCalled(calls, k)).join(" and ") || "no defect";
}

function kindName(kind) {
  if (kind === DARK_KIND) return "dark only";
  if (kind === BLACK_KIND) return "nearly black (not judged)";
  if (kind === UNREADABLE_KIND) return "unreadable";
  const named = classes.filter((_, k) => isCalled(kind, k)).length;
  if (!named || classes.length === 1) return verdictOf(kind);
  return named === 1 ? `${verdictOf(kind)} only` : classes.length === 2 ? "both" : verdictOf(kind);
}

function colourOfKind(kind) {
  if (kind === DARK_KIND) return verdicts.dark;
  if (kind === BLACK_KIND) return verdicts["nearly black"];
  const called = classes.flatMap((_, k) => (isCalled(kind, k) ? [k] : []));
  if (kind === UNREADABLE_KIND || !called.length) return verdicts["no defect"];
  return called.length > 1 ? verdicts["crack and inactive"] : (verdicts[classes[called[0]]] ?? colourOf(called[0]));
}

// Defects first, then no defect, dark, nearly black, unreadable.
function inOrder(kinds) {
  return [...kinds].sort((a, b) => (a > 0 ? 0 : 1) - (b > 0 ? 0 : 1) || (a > 0 ? a - b : b - a));
}

// ---- cells

// A cell from columns of cells; number: its number among the shown cells, -1 where it is not one of them.
function cellOf(columns, i, number, module = columns.module[i]) {
  const place = columns.place[i];
  const wide = module < 0 ? 1 : modules.columns[module];
  return {
    number,
    module,
    row: Math.floor(place / wide) + 1,
    column: (place % wide) + 1,
    name: columns.names?.[place] ?? "",
    state: columns.state[i],
    calls: columns.calls[i],
    p: columns.p.map(of => (of[i] < 0 ? null : of[i] / SCALE)),
    error: columns.errors[i] ?? "",
    people: columns.people[i],
    source: columns.sources[i],
    darkness: columns.darkness[i],
    severity: columns.severity[i],
  };
}

const isJudged = cell => cell.p[0] !== null;

function kindOf(cell) {
  if (cell.state & BLACK) return BLACK_KIND;
  if (cell.state & UNREADABLE) return UNREADABLE_KIND;
  return cell.state & DARK && !cell.calls ? DARK_KIND : cell.calls;
}

function wordsOf(cell) {
  if (cell.state & BLACK) return "nearly black, not judged";
  if (cell.state & UNREADABLE) return "unreadable";
  const called = kindOf(cell) === DARK_KIND ? "" : verdictOf(cell.calls);
  return [called, darkWords(cell)].filter(Boolean).join(", ");
}

// How dark a cell is: "dark, 31 % of the module's brightness"; "" for others.
function darkWords(cell) {
  return cell.darkness ? darknessWords(cell.darkness, cell.module >= 0) : "";
}

function byPeople(cell) {
  const [values, who] = cell.people;
  if (values.every(value => value === null)) return `${who} was not sure`;
  if (!isJudged(cell)) return `labelled by ${who}: ${verdictOf(cell.calls)}`;
  return cell.state & CORRECTED ? `corrected by ${who}: ${verdictOf(cell.calls)}` : `confirmed by ${who}`;
}

// Whether what a cell is comes from a person: the network called it otherwise, or did not judge it.
function followsPeople(cell) {
  return cell.state & CORRECTED || (cell.state & LABELLED && !isJudged(cell) && !(cell.state & (BLACK | UNREADABLE)));
}

// ---- cells near a threshold

const logit = p => Math.log(p / (1 - p));
const clipped = p => Math.max(1e-4, Math.min(1 - 1e-4, p));
const limits = thresholds.map(threshold => logit(clipped(threshold)));
const distanceOf = (p, k) => Math.abs(logit(clipped(p)) - limits[k]); // of class k from its threshold, in logits

// Numbers of the classes whose probability makes a cell unsure; none where only a person was not sure.
function unsureClasses(cell) {
  if (!(cell.state & UNSURE) || !isJudged(cell)) return [];
  const distances = cell.p.map(distanceOf);
  const near = [...distances.keys()].filter(k => distances[k] < 1);
  // The probabilities are rounded: the nearest one may seem to be a little farther away
  return near.length || cell.people ? near : [distances.indexOf(Math.min(...distances))];
}

function unsureWords(cell) {
  const near = unsureClasses(cell);
  return near.length ? `${listed(near.map(k => classes[k]))}: unsure` : "";
}

// ---- modules

const serials = modules.metadata.find(([name]) => name.toLowerCase() === "serial")?.[1] ?? [];

function moduleTitle(n) {
  const serial = serials[n];
  return serial ? `${serial} (${modules.file[n]})` : modules.file[n];
}

// Serials that stand at more than one module: [serial, numbers of the modules].
function sharedSerials() {
  const all = new Map();
  serials.forEach((serial, n) => all.set(serial, [...(all.get(serial) ?? []), n]));
  return [...all].filter(([serial, numbers]) => serial && numbers.length > 1);
}

function titleOf(cell) {
  return cell.module < 0 ? cell.name : `${moduleTitle(cell.module)}, row ${cell.row}, column ${cell.column}`;
}

// ---- where things are

const linkOf = n => `#module=${encodeURIComponent(modules.name[n])}`;

function urlOf(cell) {
  if (cell.source) return cell.source;
  if (cell.module < 0) return data.base + cell.name.split("/").map(encodeURIComponent).join("/");
  const two = n => String(n).padStart(2, "0"); // as elcells/modules/saving.py names the files
  return `cut/${encodeURIComponent(modules.name[cell.module])}/r${two(cell.row)}_c${two(cell.column)}.png`;
}

// URLs of a module's image, the best first.
function moduleImages(n) {
  const beside = data.alone ? [] : [`modules/${encodeURIComponent(modules.name[n])}.jpg`];
  return [...beside, first.images[n]].filter(Boolean);
}

// Promise of a module's nodes and cells, or null where they are not there.
function moduleData(n) {
  if (n in first.modules) return Promise.resolve(first.modules[n]);
  if (data.alone) return Promise.resolve(null);
  return needChunk(`modules-${Math.floor(n / data.modules_a_file)}`).then(chunk => chunk?.[n] ?? null);
}

// Lets an image take the next URL where one can't be loaded; then(loaded) is told whether one could.
function loadAny(image, urls, then) {
  const left = [...urls];
  const next = () => {
    if (left.length) image.src = left.shift();
    else then(false);
  };
  image.onload = () => then(true);
  image.onerror = next;
  next();
}
