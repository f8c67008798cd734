"""The HTML report of `predict.py`."""

import base64
import csv
import heapq
import html
import io
import time

import numpy as np
from PIL import Image

from elcells.files import ANY_NAME, InputError, atomic_path
from elcells.pictures import NEARLY_BLACK, read_picture

REPORT_CELLS = 1000  # the surest defects that the report shows
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
.error {{ color: #a00 }} footer {{ color: #666; margin-top: 2em }}
</style></head><body>
<h1>Defects in solar cells</h1>
<p>{model}, {when}</p>
<div class="counts">{counts}</div>
<p>{note} Click a column's title to sort.</p>
<table><thead><tr><th>cell</th><th>file</th>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
{listed}
<footer>A cell counts as positive from these probabilities on: {thresholds}.</footer>
<script>
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


def write_report(table, target, engine, model):
    """One self-contained HTML page about an output table: counts, and the surest defects with their pictures."""
    n = len(engine.classes)
    pictures, positives, defective, errors, dark = 0, np.zeros(n, int), [], [], []
    defect_free = count = failed = black = 0
    with open(table, encoding="utf-8", errors=ANY_NAME, newline="") as file:
        rows = csv.reader(file, delimiter=";")
        next(rows)
        for row in rows:
            pictures += 1
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
