"""The HTML report of `predict.py`."""

import base64
import csv
import heapq
import html
import io
import os
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from elcells.files import ANY_NAME, InputError, atomic_path
from elcells.grid import Grid
from elcells.modules import CORNERS
from elcells.pictures import NEARLY_BLACK, open_picture, read_picture

REPORT_CELLS = 1000  # the surest defects that the report shows
REPORT_MODULES = 50  # the modules that it shows
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Defects in {pictures} cells</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }}
h1 {{ font-size: 1.5em }} .counts {{ display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0 1.5em }}
.counts div {{ background: #f2f4f7; border-radius: 6px; padding: .6em 1.1em }}
.counts b {{ display: block; font-size: 1.6em; font-variant-numeric: tabular-nums }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: .3em .8em; text-align: left }}
th {{ position: sticky; top: 0; background: #fff; border-bottom: 2px solid #888; cursor: pointer; white-space: nowrap }}
th[aria-sort=ascending]::after {{ content: " \\25b2" }} th[aria-sort=descending]::after {{ content: " \\25bc" }}
td {{ border-bottom: 1px solid #ddd }} td.n {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
td.n span {{ display: inline-block; height: .7em; background: #0072b2; margin-left: .6em }}
td.n.yes {{ font-weight: 600 }} td.n.yes span {{ background: #d55e00 }}
img {{ display: block; width: 120px; height: 120px; image-rendering: auto }} .f {{ overflow-wrap: anywhere }}
figure {{ margin: 0 0 1.5em }} figcaption {{ margin: .3em 0 }}
figure svg {{ display: block; width: 100%; height: auto }}
polygon {{ fill: transparent; cursor: pointer }} polygon:hover, polygon:focus {{ fill: #fff3; outline: none }}
dialog {{ border: 0; border-radius: 8px; padding: 1em; max-width: 94vw }} dialog::backdrop {{ background: #000a }}
dialog img {{ width: min(80vw, 480px); height: auto }} dialog p {{ margin: .4em 0 0 }}
.error {{ color: #a00 }} footer {{ color: #666; margin-top: 2em }}
</style></head><body>
<h1>Defects in solar cells</h1>
<p>{model}, {when}</p>
<div class="counts">{counts}</div>
{modules}
<p>{note} Click a column's title to sort.</p>
<table><thead><tr><th>cell</th><th>file</th>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
{listed}
<footer>A cell counts as positive from these probabilities on: {thresholds}.</footer>
<script>
const box = document.querySelector("dialog");
document.querySelectorAll("polygon").forEach(p => p.addEventListener("click", () => {{
  box.querySelector("img").src = p.dataset.src;
  box.querySelector("p").textContent = p.querySelector("title").textContent;
  box.showModal();
}}));
document.addEventListener("keydown", e => {{
  if (e.key === "Enter" && e.target.tagName === "polygon") e.target.dispatchEvent(new Event("click"));
}});
box?.addEventListener("click", () => box.close());
document.querySelectorAll("th").forEach((th, i) => th.addEventListener("click", () => {{
  const body = document.querySelector("tbody"), down = th.getAttribute("aria-sort") !== "descending";
  const key = r => r.cells[i].dataset.v ?? r.cells[i].textContent;
  const order = (a, b) => i > 1 ? a - b : String(a).localeCompare(b, undefined, {{numeric: true}});
  document.querySelectorAll("th").forEach(t => t.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))).forEach(r => body.append(r));
}}));
</script></body></html>
"""


def thumbnail(path, side=120):
    """A picture as a data: URI of a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(read_picture(path, side)).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def modules_section(about, rows, target, classes):
    """HTML of the modules in about/modules.csv: those not sure first, then those with most defective cells.

    rows: dict of module -> its cells' rows (dicts). A click on a cell shows its picture, which lies beside the page.
    """
    with open(about / "modules.csv", encoding="utf-8", errors=ANY_NAME, newline="") as file:
        modules = list(csv.DictReader(file, delimiter=";"))
    failed = [m for m in modules if m["error"]]
    modules = [m for m in modules if not m["error"]]
    modules.sort(key=lambda m: (m["sure"] == "1", -sum(int(m[c]) for c in classes)))
    parts = [f"<h2>{len(modules)} modules</h2><p>Click a cell to enlarge it.</p>"]
    parts.append('<dialog><img alt=""><p></p></dialog>')
    for m in modules[:REPORT_MODULES]:
        with Image.open(about / f"{m['name']}.png") as picture:
            size, buffer = picture.size, io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=82)
        columns, lines = int(m["columns"]), int(m["rows"])
        quad = np.array([float(m[k]) for k in CORNERS]).reshape(4, 2)
        factor = size[0] / open_picture(m["filename"]).width
        shapes = Grid((quad + 0.5) * factor - 0.5, columns, lines, size[::-1]).cells()
        polygons = []
        for row in rows.get(m["name"], []):
            r, c = int(row["row"]), int(row["column"])
            found = ", ".join(f"{k} {row[f'p_{k}']}" for k in classes) if row[f"p_{classes[0]}"] else row["error"]
            points = " ".join(f"{x:.0f},{y:.0f}" for x, y in shapes[r - 1, c - 1])
            source = quote(os.path.relpath(row["filename"], Path(target).parent).replace(os.sep, "/"))
            polygons.append(
                f'<polygon tabindex="0" points="{points}" data-src="{html.escape(source)}">'
                f"<title>row {r}, column {c}: {html.escape(found)}</title></polygon>"
            )
        doubt = f' <b class="error">Not sure: {html.escape(m["why"])}.</b>' if m["sure"] != "1" else ""
        counts = ", ".join(f"{m[k]} {k.replace('_', ' ')}" for k in (*classes, "nearly_black"))
        image = base64.b64encode(buffer.getvalue()).decode()
        parts.append(
            f"<figure><figcaption><b>{html.escape(m['filename'])}</b>: {columns}x{lines} cells of {m['cell_pixels']} "
            f'pixels, {counts}.{doubt}</figcaption><svg viewBox="0 0 {size[0]} {size[1]}">'
            f'<image href="data:image/jpeg;base64,{image}" width="{size[0]}" height="{size[1]}"/>{"".join(polygons)}'
            "</svg></figure>"
        )
    if len(modules) > REPORT_MODULES:
        parts.append(f"<p>{len(modules) - REPORT_MODULES} more lie in {html.escape(str(about))}.</p>")
    if failed:
        names = "".join(f"<li>{html.escape(m['error'])}</li>" for m in failed)
        parts.append(f'<h2>No module found</h2><ul class="error">{names}</ul>')
    return "\n".join(parts)


def write_report(table, target, engine, model, about=None):
    """One self-contained HTML page about an output table: counts, and the surest defects with their pictures.

    about: folder with modules.csv and the modules' pictures, where whole modules were cut (`predict.py --grid`); they
    stand first.
    """
    n, of_modules = len(engine.classes), {}
    pictures, positives, defective, errors, dark = 0, np.zeros(n, int), [], [], []
    defect_free = count = failed = black = 0
    with open(table, encoding="utf-8", errors=ANY_NAME, newline="") as file:
        rows = csv.reader(file, delimiter=";")
        header = next(rows)
        for row in rows:
            pictures += 1
            if about:
                cell = dict(zip(header, row))
                if len(of_modules) < REPORT_CELLS or cell["module"] in of_modules:
                    of_modules.setdefault(cell["module"], []).append(cell)
                if not row[1]:
                    black += 1
                    continue
            if row[-1]:
                failed += 1
                if len(errors) < REPORT_CELLS:
                    errors.append(row)
                continue
            found, p = np.array(row[1 : 1 + n], int), [float(v) for v in row[1 + n : 1 + 2 * n]]
            positives += found
            if float(row[-2]) < NEARLY_BLACK:
                black += 1
                if len(dark) < REPORT_CELLS:
                    dark.append(row[0])
            defect_free += not found.any()
            if found.any():
                count += 1
                push = heapq.heappush if len(defective) < REPORT_CELLS else heapq.heappushpop
                push(defective, (max(np.array(p)[found > 0]), row[0], found.tolist(), p))
    lines = []
    for _, path, found, p in sorted(defective, reverse=True):
        try:
            picture = f'<img loading="lazy" alt="" src="{thumbnail(path)}">'
        except InputError:
            picture = "(gone)"
        cells = "".join(
            f'<td class="n{" yes" * f}" data-v="{v}">{v:.3f}<span style="width:{round(60 * v)}px"></span></td>'
            for f, v in zip(found, p)
        )
        name = html.escape(path)
        lines.append(f'<tr><td data-v="{name}">{picture}</td><td class="f">{name}</td>{cells}</tr>')
    counts = [("cells", pictures), *zip(engine.classes, positives), ("no defect", defect_free), ("unreadable", failed)]
    counts += [("nearly black", black)] * (black > 0)
    lists = {
        "Nearly black: dead or underexposed, which the probabilities can't tell": dark,
        "Unreadable": [row[-1] for row in errors],
    }
    listed = ""
    for title, part in lists.items():
        names = "".join(f"<li>{html.escape(line)}</li>" for line in part)
        listed += f'<h2>{title}</h2><ul class="error">{names}</ul>' * bool(part)
    page = PAGE.format(
        pictures=pictures,
        model=html.escape(str(model)),
        when=time.strftime("%Y-%m-%d %H:%M"),
        modules=modules_section(Path(about), of_modules, target, engine.classes) if about else "",
        counts="".join(f"<div><b>{value}</b>{html.escape(name)}</div>" for name, value in counts),
        note=f"{count} cells have a defect"
        + (f"; the {REPORT_CELLS} surest are shown." if count > REPORT_CELLS else ", the surest first."),
        heads="".join(f"<th>{html.escape(c)}</th>" for c in engine.classes),
        rows="\n".join(lines),
        listed=listed,
        thresholds=", ".join(f"{html.escape(c)} {t:.3f}" for c, t in zip(engine.classes, engine.thresholds)),
    )
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
