"use strict";
// The head of the report: who judged, counts, people, notes; and the histograms.
function showHead() {
  $("title").textContent = `Defects in solar cells: ${data.folder}`;
  document.title = `${data.folder}: defects in solar cells`;
  const [begun, ended] = data.judged;
  const when = !begun ? "" : begun === ended ? ` on ${begun}` : ` from ${begun} to ${ended}`;
  const from = classes.map((name, k) => `as ${name} from a probability of ${thresholds[k].toFixed(3)} on`);
  const made = new Date(data.made).toLocaleString("sv", { dateStyle: "short", timeStyle: "short" }); // 2026-11-28 14:30
  const later = data.reviewed ? "; labels that people give later are not in it" : "";
  $("about").append(
    ...paragraphs(`Judged${when} by ${data.trained}. This report was made on ${made}${later}.`),
    make("ul", {}, ...data.quality.map(textContent => make("li", { textContent }))),
    ...paragraphs(
      `Thresholds: a cell counts ${listed(from)} (operating point ${data.operating_point}). With lower thresholds ` +
        "more defects are found, and more sound cells are called defective. A probability near a threshold is the mean " +
        "over two or four turns of the cell. An inactive region is less probable where no part of a cell is dark, if " +
        "the cell has 60 pixels or more; smaller cells are shown to the network as smaller images, and count as less probable.",
    ),
  );
}

// Counts that add up to all cells; for our classes also those that are 0.
function showCounts() {
  const always = classes.length === 2 ? [1, 2, 3, 0] : [0];
  const kinds = inOrder(new Set([...always, ...Object.keys(data.kinds).map(Number)]));
  const all = summed(Object.values(data.kinds));
  const tile = (n, ...name) => make("div", {}, make("b", { textContent: said(n) }), ...name);
  $("counts").append(
    tile(data.images, data.images === 1 ? "image" : "images"),
    tile(all, all === 1 ? "cell" : "cells"),
    ...kinds.flatMap((kind, i) => [
      make("span", { className: "sign", textContent: i ? "+" : "=" }),
      tile(data.kinds[kind] ?? 0, swatch(colourOfKind(kind)), ` ${kindName(kind)}`),
    ]),
  );
  const isAnyJudged = data.histograms.some(bins => summed(bins));
  const person = data.people.unsure ? ", or a person was not sure" : "";
  const unsure =
    `Of these, ${counted(data.unsure, "cell is", "cells are")} unsure: the probability of a class is within 1 logit ` +
    `of its threshold (between 0.27 and 0.73 for a threshold of 0.5), so that the other call is nearly as likely` +
    `${person}.`;
  const dark =
    `${counted(data.dark, "cell is", "cells are")} dark or partly dark: under half of the brightness of the module's ` +
    "cells, or of the rest of the cell. Brightness says so, not the network; they may have a defect besides.";
  const nobody = isAnyJudged && "Nobody has labelled a cell yet: all calls are the network's.";
  $("sums").append(
    ...paragraphs(isAnyJudged && unsure, data.dark && dark, data.people.who.length ? aboutPeople() : nobody),
    ...(hasSeverity ? [severitySentence(), severityLegend()].map((textContent, k) =>
      make("p", { textContent, className: k ? "soft" : "", id: k ? "shapes-legend" : "severity" })) : []),
    data.reviewed ? make("p", {}, make("a", { href: "review.html" }, "review.html"), " is for labelling.") : "",
  );
}

function aboutPeople() {
  const { agreement, who, unsure, corrected, alone } = data.people;
  const names = who.map(([name, n]) => `${name} ${said(n)}`).join(", ");
  const agreed = agreement.flatMap(([same, of], k) =>
    of ? [`on ${classes[k]} in ${said(same)} of ${said(of)} (${percent(same, of)})`] : [],
  );
  const some = unsure ? `; not sure about ${said(unsure)}` : "";
  const together = agreed.length ? ` Network and people agree ${listed(agreed)}.` : "";
  const verb = corrected === 1 ? "was" : "were";
  const cells = counted(alone, "cell was", "cells were");
  const others = alone ? ` ${cells} judged by people alone: too dark or unreadable for the network.` : "";
  return (
    `People labelled ${counted(summed(who.map(([, n]) => n)), "cell")} (${names}${some}).${together} ` +
    `${counted(corrected, "call")} of ${counted(data.corrected, "cell")} ${verb} corrected.${others} All ` +
    "counts, colours and filters follow people where they said something."
  );
}

function showNotes() {
  const doubtful = modules.name.flatMap((_, n) => (modules.doubt[n] ? [n] : []));
  const doubts = doubtful.map(n =>
    make("span", {}, make("a", { href: linkOf(n), textContent: moduleTitle(n) }), ` (${modules.doubt[n]})`),
  );
  const unsure = `${counted(doubtful.length, "module is", "modules are")} not sure; look whether the grid fits: `;
  const lost = `${counted(data.failed.length, "image")} in which no module was found: `;
  const waiting = `${counted(data.waiting, "image")} of a run that was stopped not judged yet.`;
  const shared = sharedSerials().map(([serial, numbers]) => {
    const links = numbers.flatMap(n => [", ", make("a", { href: linkOf(n), textContent: modules.file[n] })]);
    return make("span", {}, `serial ${serial} stands at ${numbers.length} images: `, ...links.slice(1));
  });
  const repeated = `${counted(shared.length, "serial stands", "serials stand")} at more than one image: `;
  const notes = [
    shared.length === 1 ? make("li", {}, shared[0]) : shared.length && make("li", {}, repeated, folded(shared)),
    data.small && make("li", {}, data.small),
    doubts.length && make("li", {}, unsure, folded(doubts)),
    data.failed.length && make("li", { className: "bad" }, lost, folded(data.failed)),
    data.waiting && make("li", { className: "bad" }, waiting),
    ...data.assumed.map(text => make("li", {}, text)),
  ].filter(Boolean);
  if (notes.length) $("notes").append(make("h2", { textContent: "Notes" }), make("ul", {}, ...notes));
}

// A list; a long one is opened by a click.
function folded(items) {
  const list = make("ul", {}, ...items.map(item => make("li", {}, item)));
  return items.length <= 5 ? list : make("details", {}, make("summary", {}, `all ${said(items.length)}`), list);
}

function showHistograms() {
  $("probabilities").hidden = !Object.keys(data.kinds).some(kind => Number(kind) >= 0);
  const figures = data.histograms.map((bins, k) => {
    const caption = `${classes[k]} (threshold ${thresholds[k].toFixed(3)})`;
    return make("figure", {}, make("figcaption", { textContent: caption }), histogram(bins, k));
  });
  $("histograms").append(...figures);
}

function histogram(bins, k) {
  const svg = drawn("svg", { viewBox: "0 0 320 130", role: "img" });
  svg.append(drawn("title", {}, `${classes[k]}: cells by probability, threshold ${thresholds[k].toFixed(3)}`));
  const most = Math.max(...bins.map(n => Math.log1p(n)), 1);
  const text = (x, y, value, style = "") => drawn("text", { x, y, "text-anchor": "middle", style }, value);
  bins.forEach((n, i) => {
    const high = (90 * Math.log1p(n)) / most;
    const bar = drawn("rect", { x: 10 + 15 * i, y: 105 - high, width: 14, height: high, fill: colourOf(k) });
    const range = `${(i / bins.length).toFixed(2)} to ${((i + 1) / bins.length).toFixed(2)}`;
    bar.append(drawn("title", {}, `${range}: ${counted(n, "cell")}`));
    svg.append(bar, ...(n ? [text(17 + 15 * i, 101 - high, said(n), "font-size: 7px")] : []));
  });
  const x = 10 + 300 * thresholds[k];
  svg.append(drawn("line", { x1: x, x2: x, y1: 8, y2: 105, stroke: "currentColor", "stroke-dasharray": "3 2" }));
  svg.append(...[0, 0.5, 1].map(value => text(10 + 300 * value, 120, value)));
  return svg;
}
