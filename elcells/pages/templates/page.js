"use strict";
// Draws class maps over an image, in both pages; maps: base64 of n x n bytes for each class.
const colours = [[255, 110, 20], [40, 150, 255], [60, 220, 120], [230, 90, 230]];
function paintMap(canvas, maps, classes) {
  const bytes = atob(maps), n = Math.round(Math.sqrt(bytes.length / classes.length)), small = new ImageData(n, n);
  for (let i = 0; i < n * n; i++) {
    const values = classes.map((_, k) => bytes.charCodeAt(k * n * n + i) / 255), sum = values.reduce((a, b) => a + b, 1e-6);
    for (let c = 0; c < 3; c++) small.data[4 * i + c] = values.reduce((all, v, k) => all + v * colours[k % 4][c], 0) / sum;
    small.data[4 * i + 3] = 150 * Math.min(1, sum);
  }
  canvas.width = canvas.height = n;
  canvas.getContext("2d").putImageData(small, 0, 0);
}
