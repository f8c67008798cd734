"use strict";
// How bad defects are: lengths of crack lines, inactive areas, and the lines and areas themselves over images.
const [LENGTH_BELOW, AREA_BELOW, HAS_SHAPE] = [1, 2, 4]; // bits, as in severity_data.py
const [CRACK, INACTIVE] = ["crack", "inactive"].map(name => classes.indexOf(name));
const [isLengthMeasured, isAreaMeasured] = data.measured;
const hasSeverity = data.measured.some(Boolean);
const MODE_NAMES = ["A", "B", "C"];
// Of the numbers in a list of sums
const [SUM_LENGTH, SUM_MEASURED, SUM_UNMEASURED, MEAN_AREA, FIRST_MODE] = [0, 1, 2, 3, 4];
const lengthText = length => length.toFixed(2);
const areaText = area => (area && area < 5e-4 ? "under 0.1 %" : `${(100 * area).toFixed(1)} %`);

// ---- in words

// "1.23 cell widths · mode C" for the class crack, "4.2 %" for inactive; "" for others, and without such a call. What
// is looked for and not found has the smallest number that can be measured, which sorts it.
function severityOf(cell, k) {
  if (!isCalled(cell.calls, k)) return "";
  const [length, area, mode, bits] = cell.severity ?? [null, null, "", 0];
  if (k === CRACK && isLengthMeasured) {
    if (length === null) return "length not measured";
    if (bits & LENGTH_BELOW) return "no line found";
    const words = `${lengthText(length)} cell widths`;
    return mode ? `${words} · mode\u00a0${mode}` : words;
  }
  if (k === INACTIVE && isAreaMeasured) {
    if (bits & AREA_BELOW) return "no region found";
    return area === null ? "area not measured" : areaText(area);
  }
  return "";
}

// "crack 0.983 · 1.23 cell widths · mode C"
function classWords(cell, k) {
  const severity = severityOf(cell, k);
  return `${classes[k]} ${cell.p[k].toFixed(3)}${severity ? ` · ${severity}` : ""}`;
}

// The sentence with the sums.
function severitySentence() {
  const sums = data.severity;
  const [measured, unmeasured] = [sums[SUM_MEASURED], sums[SUM_UNMEASURED]];
  const numbers = sums.slice(FIRST_MODE);
  const modes = MODE_NAMES.flatMap((name, i) => (numbers[i] ? [`${said(numbers[i])} of mode ${name}`] : []));
  const lost = measured - summed(numbers);
  if (lost) modes.push(`${said(lost)} where no line was found, counted as a short one`);
  const why = `the shorter side under ${data.least_pixels} pixels, or called by a person alone`;
  const without = `${counted(unmeasured, "cell")} whose length is not measured (${why})`;
  const kinds = modes.length ? ` (${modes.join(", ")})` : "";
  const lengths = `${lengthText(sums[SUM_LENGTH])} cell widths in all, in ${counted(measured, "cell")}${kinds}`;
  const kindsOfCells = [(measured || !unmeasured) && lengths, unmeasured && without].filter(Boolean);
  const lines = `Cracks: ${kindsOfCells.join(", and ")}`;
  const hasArea = isAreaMeasured && sums[MEAN_AREA] !== null;
  const area = hasArea && `${areaText(sums[MEAN_AREA])} of all judged cells' area is inactive`;
  const isUnknown = !isLengthMeasured && unmeasured && "This network does not tell where cracks run: no lengths";
  const parts = [isLengthMeasured && lines, isUnknown, area].filter(Boolean);
  return parts.length ? `${parts.join("; ")}.` : "";
}

function severityLegend() {
  const areas =
    "Transparent blue over a cell is its inactive region; S, or the button, shows and hides it. Areas are in percent " +
    "of the cell.";
  const shown =
    "Red lines over a cell are its cracks, transparent blue is its inactive region; S, or the button, shows and " +
    "hides them. Lengths are in widths of a cell, areas in percent of it. ";
  const modes =
    "Modes of cracks: A: no darker part beside the crack, B: a gray one, C: a dark one; Köntges et al. 2014, " +
    "IEA-PVPS T13-01. ";
  const limits = "Lines are an estimate: they may miss faint cracks, and follow what only looks like one.";
  return isLengthMeasured ? shown + modes + limits : areas;
}

// ---- columns of the table of modules

function severityColumns() {
  const sumsOf = n => modules.severity[n];
  const isUnknown = n => !sumsOf(n)[SUM_MEASURED] && sumsOf(n)[SUM_UNMEASURED];
  const more = n => (sumsOf(n)[SUM_UNMEASURED] ? ` (${said(sumsOf(n)[SUM_UNMEASURED])} not measured)` : "");
  const length = { title: "crack length", value: n => (isUnknown(n) ? -1 : sumsOf(n)[SUM_LENGTH]) };
  const lengthOf = n => (isUnknown(n) ? "not measured" : lengthText(length.value(n)) + more(n));
  const area = { title: "inactive area", value: n => sumsOf(n)[MEAN_AREA] ?? -1 };
  const modeColumns = MODE_NAMES.map((name, i) => ({
    title: `mode ${name}`,
    value: n => (isUnknown(n) ? -1 : sumsOf(n)[FIRST_MODE + i]),
    text: n => (isUnknown(n) ? "" : said(sumsOf(n)[FIRST_MODE + i])),
  }));
  return [
    ...(isLengthMeasured ? [{ ...length, text: lengthOf }, ...modeColumns] : []),
    ...(isAreaMeasured ? [{ ...area, text: n => (area.value(n) < 0 ? "" : areaText(area.value(n))) }] : []),
  ];
}

// ---- orders of cells; `columns` is that of report_cells.js

function severityOrders() {
  const key = (k, value) => i => (isCalled(columns.calls[i], k) ? -(columns.severity[i]?.[value] ?? 0) : 1);
  const longest = "The longest crack lines of a cell first, then cracks without a length, then the others.";
  const largest = "The largest inactive areas of a cell first, then those without one, then the others.";
  return {
    ...(isLengthMeasured && { "longest cracks first": [key(CRACK, 0), longest] }),
    ...(isAreaMeasured && { "largest inactive areas first": [key(INACTIVE, 1), largest] }),
  };
}

// ---- over images

// Promise of the URL of the image that shows a cell's lines and region; null where there is none.
async function shapeOf(cell) {
  if (cell.number < 0 || !(cell.severity?.[3] & HAS_SHAPE)) return null;
  let shape = first.shapes[cell.number];
  if (!shape && !data.alone) {
    shape = (await needChunk(`shapes-${Math.floor(cell.number / data.cells_a_file)}`))?.[cell.number];
  }
  return shape ? `data:image/png;base64,${shape}` : null;
}

// Lays a cell's lines over its small image, which stands in the middle of a square.
async function addShape(box, image, cell) {
  const source = await shapeOf(cell);
  if (!source) return;
  const shape = make("img", { className: "shape", alt: "", src: source });
  const fit = () => {
    const sides = [image.naturalWidth, image.naturalHeight];
    if (image.naturalWidth) fitOver(shape, ...sides, sides.map(side => side / Math.max(...sides)));
  };
  image.addEventListener("load", fit);
  fit();
  box.append(shape);
}

// The DOMMatrix from a cell, 1 wide and high, to its place in a module's image. corners: clockwise from the upper left.
function frameOf(corners) {
  const [a, b, c, d] = corners;
  const middle = middleOf(corners);
  const right = [0, 1].map(k => (b[k] - a[k] + c[k] - d[k]) / 2); // of a cell that is no parallelogram the mean
  const down = [0, 1].map(k => (d[k] - a[k] + c[k] - b[k]) / 2);
  return new DOMMatrix([...right, ...down, ...middle]).translate(-0.5, -0.5);
}

// Width and height of a module's cells as they are cut and judged; where their files are gone, those in its image.
function cutSize(n, corners) {
  const frame = frameOf(corners);
  return modules.cut[n][0] ? modules.cut[n] : [Math.hypot(frame.a, frame.b), Math.hypot(frame.c, frame.d)];
}

// An SVG image of a cell's lines over a module's image. size: of the cell as it was judged.
function shapeOn(source, corners, size) {
  const over = seenOver(...size); // the lines of a half cell are those of a square
  const scale = 100; // browsers draw images of less than a pixel badly
  const [width, height] = over.map(value => scale * value);
  const place = { x: (scale - width) / 2, y: (scale - height) / 2, width, height };
  const { a, b, c, d, e, f } = frameOf(corners).scale(1 / scale);
  const [aside, above] = over.map(value => 50 - 50 / value);
  const more = { class: "shape", href: source, preserveAspectRatio: "none" };
  const style = `clip-path: inset(${above}% ${aside}%)`;
  return drawn("image", { ...place, ...more, transform: `matrix(${[a, b, c, d, e, f].join(" ")})`, style });
}

// Lays the lines of the cells of module n below their outlines. corners: of the cells.
async function addShapes(svg, n, cells, corners) {
  const sizes = corners.map(these => cutSize(n, these));
  const sources = await Promise.all(cells.map(shapeOf));
  const shapes = await Promise.all(sources.map((source, i) => source && thickened(source, sizes[i][0])));
  svg.prepend(...shapes.flatMap((source, i) => (source ? [shapeOn(source, corners[i], sizes[i])] : [])));
}

// Promise of the URL of a shape whose lines are wide enough to be seen in a small cell. wide: the cell in pixels.
async function thickened(source, wide) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const side = image.naturalWidth;
  const canvas = make("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const { data: old } = context.getImageData(0, 0, side, side);
  const reach = wide < 100 ? 2 : 1;
  for (let i = 0; i < side * side; i++) {
    if (old[4 * i + 3] < 255) continue; // no line
    context.fillStyle = `rgb(${old.slice(4 * i, 4 * i + 3).join()})`;
    context.fillRect((i % side) - reach, Math.floor(i / side) - reach, 2 * reach + 1, 2 * reach + 1);
  }
  return canvas.toDataURL();
}

// ---- on and off

const shapeButtons = [];

function shapeButton() {
  const button = make("button", { textContent: "Lines and areas", ariaPressed: "true" });
  button.addEventListener("click", toggleShapes);
  shapeButtons.push(button);
  return button;
}

function toggleShapes() {
  const isOff = document.body.classList.toggle("without-shapes");
  for (const button of shapeButtons) button.setAttribute("aria-pressed", !isOff);
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select")) return;
  if (hasSeverity && event.key.toLowerCase() === "s") toggleShapes();
});
