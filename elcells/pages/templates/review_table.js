"use strict";
// The name of who labels, the table of labels as a file, and the end screen of the review page.

function askName() {
  $("own").value = who;
  if (!$("opening").open) $("opening").showModal();
  $("own").select();
}

function save() {
  const text = tableText(cells.map(cell => cell.file)), number = [...state.keys()].filter(labelOf).length;
  const file = new Blob(["\ufeff", text], { type: "text/csv" });
  const link = make("a", { href: URL.createObjectURL(file), download: "labels.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  tell(`labels.csv has ${counted(number)}; move it into the folder ${place}`);
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
  const { missing, changes, blank, strange } = readTable(await file.text(), fileFinder());
  if (missing) return tell(`${file.name}: no column ${missing}; nothing loaded.`);
  if (changes.length) change(changes, here()?.file);
  show();
  const parts = [`${changes.length} labels loaded`, blank && `${blank} rows have no label`,
    strange && `${strange} rows belong to no cell of this page`];
  tell(`${parts.filter(Boolean).join(", ")}.${changes.length ? " Undo takes them back." : ""}`);
}

const counted = number => `${number} ${number === 1 ? "cell" : "cells"}`;

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
  $("end-title").textContent = left ? `${counted(labels.length)} labelled, ${left} left` : "All cells are labelled";
  $("end-counts").textContent = kinds && `Labels: ${kinds}.`;
  $("end-who").textContent = people && `Given by: ${people}.`;
  $("end-save").disabled = !labels.length;
  if (!$("end").open) $("end").showModal();
}
