"use strict";
// The labels that people give on the review page: kept in the browser by the record's key and the cell's file, so that
// a page that is made anew has them; with undo; written to and read from labels.csv.
// A label is { labels: [1, 0 or null (unsure) for each class], who, when, set }; labels is null where it was taken
// back. when: the time of that. set: when it came into this browser, in ms.
const { classes, key: record, given } = data, UNDOS = 500;
const state = new Map(), past = [];  // past: changes that can be undone, { number, place, changes: [[file, before]] }
const outside = new Set(given.map(([file]) => file));  // files whose labels the record or a table may have
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
const isTakenBack = file => outside.has(file) && state.has(file) && !labelOf(file);  // what the record must be told
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
  noteOutside([]);
  let names = [];
  try { names = Object.keys(localStorage); } catch (error) { storageFails(); }
  const label = itemName("label"), undo = itemName("undo");
  for (const name of names) {
    if (name.startsWith(label)) takeStored(name.slice(label.length), recall(name));
    else if (name.startsWith(undo) && recall(name)) past.push(recall(name));
  }
  past.sort((a, b) => a.number - b.number);
}

// Labels of these files leave this browser, or came into it as taken back.
function noteOutside(files) {
  for (const file of [...recall(itemName("outside")) ?? [], ...files]) outside.add(file);
  if (files.length) remember(itemName("outside"), [...outside]);
}

// Labels that were given before the image or its grid changed belong to another cell.
const sinceOf = new Map(data.since.map(([place, time]) => [place, Date.parse(time)]));
const isOfBefore = (file, label) => label.set < (sinceOf.get(file.replace(/[^/]*$/, "")) ?? sinceOf.get(file) ?? 0);

function takeStored(file, label) {
  if (label && isOfBefore(file, label)) return remember(itemName("label", file), null);
  if (label && label.set >= (state.get(file)?.set ?? 0)) state.set(file, label);
}

function put(file, label) {
  state.set(file, { labels: null, ...label, set: Date.now() });
  remember(itemName("label", file), state.get(file));
}

// Change labels, [[file, label]], as one step that can be undone; place: what to go back to then.
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
  const one = last.changes.length === 1;
  for (const [file, before] of last.changes)
    put(file, before ? { ...before, when: one ? now() : before.when } : { labels: null, who, when: now() });
  return last;
}

const quoted = text => /[";\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;

// All labels as the text of labels.csv: the files of `order` first. One that was taken back has no labels and a 0 in
// `unsure`, or the record would keep it.
function tableText(order) {
  const rows = [["filename", ...classes, "unsure", "who", "when"]];
  for (const file of new Set([...order, ...[...state.keys()].sort()])) {
    const label = labelOf(file);
    if (label) rows.push([file, ...label.labels, isBlank(label) ? 1 : "", label.who, label.when]);
    else if (isTakenBack(file)) {
      const { who: by = who, when = now() } = state.get(file);
      rows.push([file, ...classes.map(() => ""), 0, by, when]);
    }
  }
  return rows.map(row => row.map(v => quoted(String(v ?? ""))).join(";")).join("\n") + "\n";
}

// Rows of a table, arrays of text; each has its (last) line's number as `line`.
function parse(text) {
  const rows = [[""]];
  let inside = false, line = 1;
  text = text.replace(/^\ufeff/, "").replaceAll("\r\n", "\n");
  for (let i = 0; i < text.length; i++) {
    const c = text[i], row = rows.at(-1);
    row.line = line;
    if (c === "\n") line++;
    if (inside && c === '"' && text[i + 1] === '"') { row[row.length - 1] += '"'; i++; }
    else if (c === '"' && (inside || row.at(-1) === "")) inside = !inside;
    else if (!inside && c === ";") row.push("");
    else if (!inside && c === "\n") rows.push([""]);
    else row[row.length - 1] += c;
  }
  return rows.filter(row => row.some(Boolean));
}

// Whether text is a time that report.py takes: 2026-11-28, also with 13:50, seconds and a zone.
function isTime(text) {
  const match = /^([1-9]\d{3}-\d\d-\d\d)([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?$/.exec(text);
  const day = match ? Date.parse(match[1]) : NaN;  // some browsers take 30 February for 2 March
  return !isNaN(day) && new Date(day).toISOString().startsWith(match[1]) && !isNaN(Date.parse(text.replace(" ", "T")));
}

// What a table says: { missing: name of a column that it lacks, changes: [[file, label]], blank, foreign: numbers of
// rows, values, times: texts of what is wrong in rows }. fileOf: the file that a name means, or undefined.
function readTable(text, fileOf) {
  const [head = [], ...rows] = parse(text), missing = ["filename", ...classes].find(name => !head.includes(name));
  const read = { missing, changes: [], blank: 0, foreign: 0, values: [], times: [] };
  if (missing) return read;
  for (const row of rows) {
    const value = name => (row[head.indexOf(name)] ?? "").trim();
    const wrong = [...classes, "unsure"].find(name => !["", "0", "1"].includes(value(name)));
    const file = fileOf(value("filename")), [unsure, who, when] = ["unsure", "who", "when"].map(value);
    const labels = classes.map(name => unsure === "1" || value(name) === "" ? null : Number(value(name)));
    const isEmpty = labels.every(v => v === null), isBack = isEmpty && unsure === "0" && when !== "";
    if (file === undefined) read.foreign++;
    else if (wrong) read.values.push(`line ${row.line}: ${wrong} is ${value(wrong)}`);
    else if (isEmpty && unsure !== "1" && !isBack) read.blank++;
    else if (when && !isTime(when)) read.times.push(`line ${row.line}: ${when}`);
    else read.changes.push([file, { labels: isBack ? null : labels, who, when }]);
  }
  return read;
}
