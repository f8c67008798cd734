"use strict";
// Pages of long lists, tables that are sorted and searched: of all modules, and of folders of images of cells.
const TABLE_SIZES = [50, 500, Infinity];

// A function (page, pages) that shows in a box which page is seen; go(page) goes to another.
function makePager(box, go, what) {
  return (page, pages) => {
    const bounds = { type: "number", min: 1, max: pages, value: page + 1 };
    const input = make("input", { ...bounds, ariaLabel: `page of ${what}` });
    const wanted = () => Math.max(1, Math.min(pages, Math.round(Number(input.value) || 1))) - 1;
    input.addEventListener("change", () => go(wanted()));
    const step = (textContent, by, name) => {
      const disabled = page + by < 0 || page + by >= pages;
      const button = make("button", { textContent, disabled, ariaLabel: `${name} page of ${what}` });
      button.addEventListener("click", () => go(page + by));
      return button;
    };
    const parts = [step("‹", -1, "previous"), "page", input, `of ${said(pages)}`, step("›", 1, "next")];
    box.replaceChildren(...(pages > 1 ? parts : []));
  };
}

// How many are shown on a page; nothing to choose where all are.
function sizeChoice(sizes, count, change, what) {
  if (count <= sizes[0]) return "";
  const fitting = sizes.filter((_, i) => !i || sizes[i - 1] < count);
  const name = size => (size === Infinity ? `all ${what}` : `${said(size)} ${what}`);
  const options = fitting.map(size => make("option", { value: size, textContent: name(size) }));
  const select = make("select", { ariaLabel: `${what} on a page` }, ...options);
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", {}, select, " on a page, also of the print");
}

// Puts a table into a box; its headers sort. columns: {title, value(row)}, some with text(row), link(row), isText.
// changed(rows): is told the order of the rows. Returns find(text), which searches the columns of text.
function makeTable(box, rows, columns, changed = () => {}) {
  const state = { by: null, down: true, page: 0, size: TABLE_SIZES[0], found: rows, order: rows };
  const body = make("tbody");
  const head = make("tr");
  const some = make("span", { className: "soft" });
  const pager = make("div", { className: "pager screen" });
  const go = page => { state.page = page; fill(); };
  const update = makePager(pager, go, "the table");

  function fill() {
    const start = state.page * state.size;
    const shown = state.size === Infinity ? state.order : state.order.slice(start, start + state.size);
    body.replaceChildren(...shown.map(row => make("tr", {}, ...columns.map(column => tableCell(column, row)))));
    head.replaceChildren(...columns.map(column => tableHeader(column, state, () => sortBy(column))));
    some.textContent = state.order.length < rows.length ? `${said(state.order.length)} of ${said(rows.length)}` : "";
    update(state.page, Math.ceil(state.order.length / state.size));
  }
  function sortBy(column) {
    state.down = column === state.by ? !state.down : !column.isText;
    state.by = column;
    sort();
  }
  function sort() {
    const { by, down, found } = state;
    const compare = by?.isText
      ? (a, b) => by.value(a).localeCompare(by.value(b), "en", { numeric: true })
      : (a, b) => by.value(a) - by.value(b);
    state.order = by ? [...found].sort((a, b) => (down ? compare(b, a) : compare(a, b))) : found;
    go(0);
    changed(state.order);
  }
  const search = make("input", { type: "search", placeholder: "part of a name", ariaLabel: "search the table" });
  const texts = columns.filter(column => column.isText);
  function find(text) {
    const wanted = text.toLowerCase();
    search.value = text;
    state.found = rows.filter(row => !wanted || texts.some(column => column.value(row).toLowerCase().includes(wanted)));
    sort();
  }
  search.addEventListener("input", () => find(search.value));
  const choice = sizeChoice(TABLE_SIZES, rows.length, size => { state.size = size; go(0); }, "rows");
  const wide = make("div", { className: "wide" }, make("table", {}, make("thead", {}, head), body));
  box.append(
    make("div", { className: "tools screen" }, make("label", {}, "Search ", search), some, choice, pager),
    sidewaysHint(wide),
    wide,
  );
  sort();
  return find;
}

// Says that a table is wider than the screen, while it is. wide: the box that scrolls.
function sidewaysHint(wide) {
  const textContent = "The table is wider than the screen: scroll it sideways. →";
  const hint = make("p", { className: "soft screen", hidden: true, textContent });
  const observer = new ResizeObserver(() => {
    hint.hidden = wide.scrollWidth <= wide.clientWidth;
    wide.classList.toggle("cut", !hint.hidden);
  });
  observer.observe(wide);
  observer.observe(wide.firstChild);
  return hint;
}

function tableCell(column, row) {
  const text = (column.text ?? column.value)(row);
  const href = column.link?.(row);
  const names = `${column.isText ? "text" : ""} ${column.link ? "name" : ""}`;
  return make("td", { className: names }, href && text ? make("a", { href, textContent: text }) : text);
}

function tableHeader(column, { by, down }, sort) {
  const isSorted = column === by;
  const button = make("button", { textContent: column.title + (isSorted ? (down ? " ↓" : " ↑") : "") });
  button.addEventListener("click", sort);
  const ariaSort = isSorted ? (down ? "descending" : "ascending") : "none";
  return make("th", { className: column.isText ? "text" : "", scope: "col", ariaSort }, button);
}

// ---- all modules

const countsOf = n => modules.counts[n]; // cells, each class, dark, nearly black, any of these, corrected
const DARK_COUNT = 1 + classes.length;
const shareOf = (n, k) => countsOf(n)[k] / countsOf(n)[0];
const [BLACK_COUNT, ANY_COUNT, CORRECTED_COUNT] = [1, 2, 3].map(k => DARK_COUNT + k);
const worstFirst = [...modules.name.keys()].sort((a, b) => shareOf(b, ANY_COUNT) - shareOf(a, ANY_COUNT));

function countColumn(title, k) {
  const text = n => (countsOf(n)[k] ? `${said(countsOf(n)[k])} (${percent(countsOf(n)[k], countsOf(n)[0])})` : "0");
  return { title, value: n => shareOf(n, k), text };
}

function moduleColumns() {
  const metadata = modules.metadata.map(([title, values], k) => {
    return { title, isText: true, value: n => values[n], link: k ? undefined : linkOf };
  });
  const few = n => (modules.pixels[n] < data.fine_cracks ? " (few)" : "");
  const grid = n => `${modules.columns[n]}x${modules.rows[n]}, ${modules.doubt[n] ? "not sure" : "sure"}`;
  return [
    ...metadata,
    { title: "image", isText: true, value: n => modules.file[n], link: linkOf },
    { title: "cells", value: n => countsOf(n)[0] },
    countColumn("with a defect or dark", ANY_COUNT),
    ...classes.map((name, k) => countColumn(name, 1 + k)),
    ...severityColumns(),
    countColumn("dark", DARK_COUNT),
    countColumn("nearly black", BLACK_COUNT),
    ...(data.corrected ? [{ title: "corrected", value: n => countsOf(n)[CORRECTED_COUNT] }] : []),
    { title: "pixels a cell", value: n => modules.pixels[n], text: n => said(modules.pixels[n]) + few(n) },
    { title: "grid", isText: true, value: grid },
  ];
}

// changed: as makeTable takes it. Returns what makeTable returns.
function showTable(changed) {
  const count = worstFirst.length;
  const explained =
    "Worst are the modules with the largest share of cells that have a defect or are dark, nearly black ones too. " +
    "Numbers of cells, and their share of the module's cells" +
    `${isLengthMeasured ? "; lengths are sums in cell widths" : ""}. ` +
    "A click on a column's name sorts the table, and the images below it.";
  $("table").append(
    make("h2", { textContent: count === 1 ? "The module" : `All ${said(count)} modules, worst first` }),
    make("p", { className: "soft", textContent: explained }),
  );
  return makeTable($("table"), worstFirst, moduleColumns(), changed);
}

// ---- folders of images of cells

function showFolders() {
  if (data.folders.length < 2) return;
  const kinds = inOrder(new Set(data.folders.flatMap(([, counts]) => Object.keys(counts).map(Number))));
  const all = ([, counts]) => summed(Object.values(counts));
  const defects = row => all(row) - (row[1][0] ?? 0);
  const columns = [
    { title: "folder", isText: true, value: ([folder]) => folder, link: () => "" },
    { title: "cells", value: all },
    ...kinds.map(kind => ({ title: kindName(kind), value: ([, counts]) => counts[kind] ?? 0 })),
  ];
  $("folders").append(
    make("h2", { textContent: `${said(data.folders.length)} folders of images of cells` }),
    make("p", { className: "soft", textContent: `In ${data.root}.` }),
  );
  makeTable($("folders"), [...data.folders].sort((a, b) => defects(b) - defects(a)), columns);
}
