"use strict";
// The name of who labels, the table of labels as a file, and the end screen of the review page.

const place = data.is_beside ? folderOf(location) : data.place;  // of the table; a results folder may have been moved

// The folder of a page on this computer by its URL.
function folderOf({ protocol, host, pathname }) {
  if (protocol !== "file:") return data.place;
  let path;
  try { path = decodeURIComponent(pathname).replace(/[^/]*$/, ""); } catch (error) { return data.place; }  // no UTF-8
  const drive = /^\/[a-z]:\//i.test(path), isWindows = drive || host;
  if (path.length > (drive ? 4 : 1)) path = path.slice(0, -1);
  return isWindows ? `${host && `//${host}`}${drive ? path.slice(1) : path}`.replaceAll("/", "\\") : path;
}

// A word of a step's command: text, or a path, [as it was typed where the folder was made, its name in the folder].
function inShell(word) {
  if (typeof word === "string") return word;
  if (place === data.place) return word[0];
  const isWindows = /^([a-z]:)?\\/i.test(place), path = [place, word[1]].filter(Boolean).join(isWindows ? "\\" : "/");
  if (isWindows) return /\s/.test(path) ? `"${path}"` : path;
  return /[^\w@%+=:,./-]/.test(path) ? `'${path.replaceAll("'", `'"'"'`)}'` : path;
}

function askName() {
  $("own").value = who;
  if (!$("opening").open) $("opening").showModal();
  $("own").select();
}

function save() {
  const text = tableText(cells.map(cell => cell.file)), labelled = [...state.keys()].filter(labelOf);
  const file = new Blob(["\ufeff", text], { type: "text/csv" });
  const link = make("a", { href: URL.createObjectURL(file), download: "labels.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  noteOutside(labelled);
  const back = takenBack();
  tell(`labels.csv has ${counted(labelled.length, "cell")}${back && ` and ${back}`}; move it into the folder ${place}`);
}

// The file that a name in a table means; older tables have names relative to another folder.
function fileFinder() {
  const known = new Set([...cells.map(cell => cell.file), ...state.keys()]), byLast = new Map();
  for (const file of known) {
    const last = file.split("/").at(-1);
    byLast.set(last, [...byLast.get(last) ?? [], file]);
  }
  return name => {
    if (known.has(name) || placeOnBoard(name)) return name;
    const tail = name.replaceAll("\\", "/").replace(/^(\.\.?\/)+/, "");
    const ending = (byLast.get(tail.split("/").at(-1)) ?? []).filter(file => `/${file}`.endsWith(`/${tail}`));
    return ending.length === 1 ? ending[0] : undefined;
  };
}

async function load(file) {
  const { missing, changes, blank, foreign, values, times } = readTable(await file.text(), fileFinder());
  if (missing) return tell(`${file.name}: no column ${missing}; nothing loaded.`);
  const back = changes.filter(([, label]) => !label.labels).map(([cell]) => cell);
  noteOutside(back);
  if (changes.length) change(changes, here()?.file);
  show();
  const parts = [`${counted(changes.length - back.length, "label")} loaded`,
    back.length && `${counted(back.length, "label")} taken back`,
    blank && `${counted(blank, "row has", "rows have")} no label`,
    foreign && `${counted(foreign, "row belongs", "rows belong")} to no cell of this page`,
    values.length && `${counted(values.length, "row has a value", "rows have values")} other than 1, 0 or nothing `
      + `(${someOf(values)})`,
    times.length && `${counted(times.length, "row has a time", "rows have times")} in "when" not written as ${now()} `
      + `(${someOf(times)})`];
  tell(`${parts.filter(Boolean).join(", ")}.${changes.length ? " Undo reverts this." : ""}`);
}

const counted = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;
const someOf = texts => [...texts.slice(0, 3), ...texts.length > 3 ? ["…"] : []].join("; ");

// How many labels the table takes back, in words; "" where there are none.
function takenBack() {
  const number = [...state.keys()].filter(isTakenBack).length;
  return number ? `${counted(number, "label")} taken back` : "";
}

// How often each value comes, the most frequent first; text(value, number) says it.
function tally(values, text) {
  const numbers = new Map();
  for (const value of values) numbers.set(value, (numbers.get(value) ?? 0) + 1);
  return [...numbers].sort((a, b) => b[1] - a[1]).map(pair => text(...pair)).join(", ");
}

// A command that breaks into lines at its spaces only, and is marked as a whole by a click.
function commandOf(text) {
  return make("code", {}, ...text.split(" ").flatMap(word => [" ", make("span", { textContent: word })]).slice(1));
}

function finish() {
  const labels = [...state.keys()].map(labelOf).filter(Boolean);
  const left = cells.filter(cell => !labelOf(cell.file)).length;
  const kinds = tally(labels.map(words), (kind, number) => `${number} ${kind}`);
  const people = tally(labels.map(label => label.who || "somebody"), (name, number) => `${name} (${number})`);
  const back = takenBack();
  complete = false;
  const done = `${counted(labels.length, "cell")} labelled, ${left} left`;
  $("end-title").textContent = left ? done : "All cells are labelled";
  $("end-counts").textContent = [kinds && `Labels: ${kinds}.`, back && `Besides, ${back}.`].filter(Boolean).join(" ");
  $("end-who").textContent = people && `Given by: ${people}.`;
  $("end-save").disabled = !labels.length && !back;
  $("end-keys").textContent = "";
  if (!$("end").open) $("end").showModal();
}
