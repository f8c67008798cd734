"""The image of a module with its grid, each cell in the colour of its verdict."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elcells.colours import DARK_VERDICT, NO_DEFECT, OTHER_COLOUR, VERDICT_COLOURS
from elcells.files import atomic_path

FILL = "38"  # opacity of a defective cell's colour, hexadecimal
SHOWN_SIZE = 1600  # pixels of the longer side of a larger image
TEXT_CELL = 40  # pixels that a cell needs for its probabilities: images of smaller ones are enlarged
MOST_ENLARGED = 2400  # pixels of the longer side of an enlarged image
LEGEND_HEIGHT = 34  # pixels
ENTRY_GAP = 34  # pixels between the texts of a legend


def verdict(calls, classes):
    """What a cell's calls, 0 or 1 for each class, say: "crack and inactive"."""
    return " and ".join(name for name, call in zip(classes, calls) if call) or NO_DEFECT


def draw_module(module, path, verdicts, probabilities=None, judged=True):
    """Save a CutModule's image with its grid, each cell in the colour of its verdict, and probabilities at defects.

    verdicts: what is said of each cell (`verdict`). probabilities: text for each cell. judged: False where no network
    has judged the cells, so that the legend does not claim that they have no defect.
    """
    with_text = probabilities is not None
    with_darkness = with_text and any(DARK_VERDICT in text for text in probabilities)
    image = resized(module.image, smallest_side(module.grid), with_text).convert("RGB")
    draw_cells(image, module.grid, verdicts, probabilities)
    font = ImageFont.load_default(14)
    entries = legend(verdicts if judged else [name for name in verdicts if name != NO_DEFECT], with_text, with_darkness)
    width = max(image.width, round(sum(ENTRY_GAP + font.getlength(text) for _, text in entries)))
    page = Image.new("RGB", (width, image.height + LEGEND_HEIGHT), "white")
    page.paste(image)
    draw = ImageDraw.Draw(page)
    draw_legend(draw, font, image.height, entries)
    if not module.sure:
        text = f"NOT SURE: {module.why}"
        draw.rectangle((0, 0, draw.textlength(text, font) + 16, 24), "black")
        draw.text((8, 12), text, "white", font, "lm")
    with atomic_path(path) as temporary:
        page.save(temporary, "PNG", compress_level=1)


def resized(image, cell, enlarge):
    """A module's image as it is drawn on: of at most SHOWN_SIZE pixels, unless its cells would be too small for text.

    cell: shortest side of its cells in pixels. enlarge: give it TEXT_CELL pixels, where MOST_ENLARGED allows that.
    """
    longer = max(image.size)
    factor = min(1, SHOWN_SIZE / longer)
    if enlarge:
        factor = max(factor, min(TEXT_CELL / cell, MOST_ENLARGED / longer))
    size = [max(1, round(side * factor)) for side in image.size]
    return image if factor == 1 else image.resize(size, Image.Resampling.BICUBIC)


def smallest_side(grid):
    """The shortest side of a Grid's cells in pixels."""
    corners = grid.cells()
    return float(np.linalg.norm(corners - np.roll(corners, 1, -2), axis=-1).min())


def draw_cells(image, grid, verdicts, probabilities):
    """Draw the outline of each cell into an RGB image, which may be smaller or larger than the grid's."""
    factor = image.width / (2 * grid.centre[0] + 1)
    corners = (grid.cells().reshape(-1, 4, 2) + 0.5) * factor - 0.5
    cell = max(4.0, float(grid.cell_size().min() * factor))
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(max(9, min(20, cell / 4)))
    thin = max(1, round(cell / 80))
    thick = max(1, round(cell / 22))
    places = sorted(range(len(corners)), key=lambda place: verdicts[place] != NO_DEFECT)  # defects on top
    for place in places:
        colour = VERDICT_COLOURS.get(verdicts[place], OTHER_COLOUR)
        if verdicts[place] == NO_DEFECT:
            draw.polygon([tuple(corner) for corner in corners[place]], outline=colour, width=thin)
            continue
        middle = corners[place].mean(0)
        within = middle + (corners[place] - middle) * 0.94
        draw.polygon([tuple(corner) for corner in within], fill=colour + FILL, outline=colour, width=thick)
        if probabilities is not None:
            outline = {"stroke_width": 2, "stroke_fill": "black"}
            draw.text(tuple(middle), probabilities[place], "white", font, "mm", spacing=0, **outline)


def legend(verdicts, with_text, with_darkness):
    """Pairs (colour, text): how many cells have each verdict; then (None, text): what the numbers in cells are."""
    entries = []
    others = dict.fromkeys(sorted(set(verdicts) - VERDICT_COLOURS.keys()), OTHER_COLOUR)
    for name, colour in (VERDICT_COLOURS | others).items():
        if name in verdicts:
            entries.append((colour, f"{name}: {verdicts.count(name)}"))
    if with_text:
        meaning = "numbers: probability"
        entries.append((None, f"{meaning}, and brightness of dark parts" if with_darkness else meaning))
    return entries


def draw_legend(draw, font, top, entries):
    """Draw the entries of a legend, a square of its colour before each text, below the row `top`."""
    x = 8
    for colour, text in entries:
        if colour:
            draw.rectangle((x, top + 10, x + 14, top + 24), colour, "black")
        draw.text((x + 20 if colour else x, top + 17), text, "black", font, "lm")
        x += ENTRY_GAP + draw.textlength(text, font)
