"use strict";
// What the pages have in common. `palette` and `verdicts` come from elcells/colours.py.
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent), { palette, verdicts } = data;
const colourOf = k => palette[k % palette.length];

function make(tag, more = {}, ...children) {
  const node = Object.assign(document.createElement(tag), more);
  node.append(...children);
  return node;
}

function drawn(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function swatch(colour) {
  const mark = make("i", { className: "swatch" });
  mark.style.setProperty("--colour", colour);
  return mark;
}

// How dark a cell is, in words. darkness: [share of the cell, its brightness relative to the reference].
function darknessWords([share, ratio], inModule) {
  const percent = value => `${Math.round(100 * value)} %`;
  if (share === 1) return `dark, ${percent(ratio)} of the module's brightness`;
  return `${percent(share)} of the cell dark, at ${percent(ratio)} of ${inModule ? "the usual brightness" : "the rest"}`;
}

// Class maps over an image; maps: base64 of n x n bytes for each class.
function paintMap(canvas, maps, classes) {
  const bytes = atob(maps), n = Math.round(Math.sqrt(bytes.length / classes.length)), small = new ImageData(n, n);
  const colours = classes.map((_, k) => [1, 3, 5].map(i => parseInt(colourOf(k).slice(i, i + 2), 16)));
  for (let i = 0; i < n * n; i++) {
    const values = classes.map((_, k) => bytes.charCodeAt(k * n * n + i) / 255), sum = values.reduce((a, b) => a + b, 1e-6);
    for (let c = 0; c < 3; c++) small.data[4 * i + c] = values.reduce((all, v, k) => all + v * colours[k][c], 0) / sum;
    small.data[4 * i + 3] = 150 * Math.min(1, sum);
  }
  canvas.width = canvas.height = n;
  canvas.getContext("2d").putImageData(small, 0, 0);
}

// How much larger than an image what the network saw of it is, in width and height: it sees an image that is not square
// mirrored at its longer edges (elcells/data/images.py, to_square).
function seenOver(width, height) {
  const longer = Math.max(width, height);
  return longer <= 1.05 * Math.min(width, height) ? [1, 1] : [longer / width, longer / height];
}

// Lays what belongs to all that the network saw over an image, which it is cut to. box: the part of the node's parent
// that the image fills, in width and height.
function fitOver(node, width, height, box = [1, 1]) {
  const over = seenOver(width, height);
  const [wide, high] = over.map((factor, k) => 100 * factor * box[k]);
  const place = { left: (100 - wide) / 2, top: (100 - high) / 2, width: wide, height: high };
  for (const [name, value] of Object.entries(place)) node.style[name] = `${value}%`;
  const [aside, above] = over.map(factor => 50 - 50 / factor);
  node.style.clipPath = `inset(${above}% ${aside}%)`;
}

// What follows # in the address, text; as it is where it can't be decoded.
function hashText() {
  try { return decodeURIComponent(location.hash.slice(1)); } catch (error) { return location.hash.slice(1); }
}

// Chunks of data: calls chunk("name", value) in scripts, which stand in the page or in files of the folder data.chunks.
const chunks = {}, coming = {};
// One of another state of the record, a newer one perhaps, is not taken.
function chunk(name, value, stamp = data.stamp) { chunks[name] = stamp === data.stamp ? value : null; }

// Promise of a chunk's value, or null where its file is not there: the page was mailed alone.
function needChunk(name) {
  if (name in chunks) return Promise.resolve(chunks[name]);
  coming[name] ??= new Promise(resolve => {
    const script = make("script", { src: `${data.chunks}/${name}.js` });
    script.onload = () => resolve(chunks[name] ?? null);
    script.onerror = () => resolve(null);
    document.head.append(script);
  });
  return coming[name];
}
