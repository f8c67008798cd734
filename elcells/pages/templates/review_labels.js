"use strict";
// The labels that people give on the review page: kept in the browser by the record's key and the cell's file, so that
// a page that is made anew has them; with undo; written to and read from labels.csv.
// A label is { labels: [1, 0 or null (unsure) for each class], who, when, set }; labels is null where it was taken
// back. when: the label's time. set: when it came into this browser, in ms.
const { classes, key: record, given } = data, UNDOS = 500;
const state = new Map(), past = [];  // past: changes that can be undone, { number, place, changes: [[file, before]] }
const itemName = (kind, name = "") => `review-${kind} ${record} ${name}`;
let storageFails = () => {};

function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch (error) { storageFails(); }
}

function recall(name) {
  try { return JSON.parse(localStorage.getItem(name)); } catch (error) { return null; }
}

const labelOf = file => { const label = state.get(file); return label?.labels ? label : null; };
const isUnsure = label => label.labels.includes(null);
const isBlank = label => label.labels.every(v => v === null);
const now = () => new Date().toISOString().slice(0, 19) + "Z";

function words(label) {
  if (!label) return "";
  if (isBlank(label)) return "unsure";
  const seen = classes.filter((_, k) => label.labels[k]).join(" and ");
  const unsure = classes.filter((_, k) => label.labels[k] === null).map(name => `unsure about ${name}`);
  return [seen || (unsure.length ? "" : classes.length > 1 ? "neither" : `no ${classes[0]}`), ...unsure]
    .filter(Boolean).join(", ");
}

// The labels of the record, then those of the browser, unless the record's is newer.
function restoreLabels() {
  for (const [file, labels, who, when] of given) state.set(file, { labels, who, when, set: Date.parse(when) || 0 });
  let names = [];
  try { names = Object.keys(localStorage); } catch (error) { storageFails(); }
  const label = itemName("label"), undo = itemName("undo");
  for (const name of names) {
    if (name.startsWith(label)) takeStored(name.slice(label.length), recall(name));
    else if (name.startsWith(undo) && recall(name)) past.push(recall(name));
  }
  past.sort((a, b) => a.number - b.number);
}

function takeStored(file, label) {
  if (label && label.set >= (state.get(file)?.set ?? 0)) state.set(file, label);
}

function put(file, label) {
  state.set(file, { labels: null, ...label, set: Date.now() });
  remember(itemName("label", file), state.get(file));
}

// Change labels, [[file, label or null]], as one step that can be undone; place: what to go back to then.
function change(changes, place) {
  const number = (past.at(-1)?.number ?? 0) + 1;
  past.push({ number, place, changes: changes.map(([file]) => [file, labelOf(file)]) });
  remember(itemName("undo", number), past.at(-1));
  if (past.length > UNDOS) remember(itemName("undo", past.shift().number), null);
  for (const [file, label] of changes) put(file, label);
}

// Undo the last step; returns it, or null. A cell's old label gets a new time, or the record would keep the undone one.
function undoChange() {
  const last = past.pop();
  if (!last) return null;
  remember(itemName("undo", last.number), null);
  for (const [file, before] of last.changes)
    put(file, before && last.changes.length === 1 ? { ...before, when: now() } : before);
  return last;
}

const quoted = text => /[";\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;

// All labels as the text of labels.csv: the files of `order` first. A label of the record that was taken back becomes an
// unsure one, or the record would keep it.
function tableText(order) {
  const rows = [["filename", ...classes, "unsure", "who", "when"]], recorded = new Set(given.map(([file]) => file));
  for (const file of new Set([...order, ...[...state.keys()].sort()])) {
    const label = labelOf(file) ?? (recorded.has(file) && { labels: classes.map(() => null), who, when: now() });
    if (label) rows.push([file, ...label.labels, isBlank(label) ? 1 : "", label.who, label.when]);
  }
  return rows.map(row => row.map(v => quoted(String(v ?? ""))).join(";")).join("\n") + "\n";
}

function parse(text) {
  const rows = [[""]];
  let inside = false;
  text = text.replace(/^\ufeff/, "").replaceAll("\r\n", "\n");
  for (let i = 0; i < text.length; i++) {
    const c = text[i], row = rows.at(-1);
    if (inside && c === '"' && text[i + 1] === '"') { row[row.length - 1] += '"'; i++; }
    else if (c === '"' && (inside || row.at(-1) === "")) inside = !inside;
    else if (!inside && c === ";") row.push("");
    else if (!inside && c === "\n") rows.push([""]);
    else row[row.length - 1] += c;
  }
  return rows.filter(row => row.some(Boolean));
}

// What a table says: { missing: name of a column that it lacks, changes: [[file, label]], blank, strange: numbers of
// rows }. fileOf: the file that a name means, or undefined.
function readTable(text, fileOf) {
  const [head = [], ...rows] = parse(text), value = (row, name) => row[head.indexOf(name)] ?? "";
  const missing = ["filename", ...classes].find(name => !head.includes(name));
  const read = { missing, changes: [], blank: 0, strange: 0 };
  if (missing) return read;
  for (const row of rows) {
    const file = fileOf(value(row, "filename")), texts = classes.map(name => value(row, name).trim());
    const labels = texts.map(text => text === "" ? null : Number(text)), unsure = value(row, "unsure").trim() === "1";
    if (file === undefined || labels.some(v => v !== null && v !== 0 && v !== 1)) read.strange++;
    else if (labels.every(v => v === null) && !unsure) read.blank++;
    else read.changes.push([file, { labels, who: value(row, "who"), when: value(row, "when") }]);
  }
  return read;
}
