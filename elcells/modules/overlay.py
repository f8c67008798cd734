"""The image of a module with its grid, each cell in the colour of its verdict."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from elcells.colours import DARK_VERDICT, NO_DEFECT, OTHER_COLOUR, VERDICT_COLOURS
from elcells.data.images import is_square
from elcells.files import atomic_path
from elcells.inference.severity import (
    SHAPE_COLOURS,
    SHAPE_LINE,
    SHAPE_OPACITY,
    SHAPE_REGION,
    SHAPE_SIDE,
    shape_numbers,
)

FILL = "38"  # opacity of a defective cell's colour, hexadecimal
SHOWN_SIZE = 1600  # pixels of the longer side of a larger image
TEXT_CELL = 40  # pixels that a cell needs for its probabilities: images of smaller ones are enlarged
MOST_ENLARGED = 2400  # pixels of the longer side of an enlarged image
LEGEND_HEIGHT = 34  # pixels
ENTRY_GAP = 34  # pixels between the texts of a legend
LINE_WIDTH = 2  # pixels of a crack line
QUALITY = 90  # of the file, a JPEG: a PNG took 0.1 s and four times the bytes


def verdict(calls, classes):
    """What a cell's calls, 0 or 1 for each class, say: "crack and inactive"."""
    return " and ".join(name for name, call in zip(classes, calls) if call) or NO_DEFECT


def draw_module(module, path, verdicts, probabilities=None, judged=True, shapes=()):
    """Save a CutModule's image with its grid, each cell in the colour of its verdict, and probabilities at defects.

    verdicts: what is said of each cell (`verdict`). probabilities: text for each cell. judged: False where no network
    has judged the cells, so that the legend does not claim that they have no defect. shapes: for each cell the image of
    its crack lines and inactive region (`shape_image`), or None.
    """
    with_text = probabilities is not None
    with_darkness = with_text and any(DARK_VERDICT in text for text in probabilities)
    image = resized(module.image, smallest_side(module.grid), with_text).convert("RGB")
    draw_shapes(image, module.grid, shapes, module.cells)
    draw_cells(image, module.grid, verdicts, probabilities)
    font = ImageFont.load_default(14)
    entries = legend(verdicts if judged else [name for name in verdicts if name != NO_DEFECT], with_text, with_darkness)
    entries += legend_of_shapes(shapes)
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
        page.save(temporary, "JPEG", quality=QUALITY, subsampling=0)  # thin lines keep their colour


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


def corners_in(image, grid):
    """Corners of a Grid's cells in an image, (N, 4, 2) pixels, which may be smaller or larger than the grid's."""
    factor = image.width / (2 * grid.centre[0] + 1)
    return (grid.cells().reshape(-1, 4, 2) + 0.5) * factor - 0.5


def draw_shapes(image, grid, shapes, cells):
    """Draw crack lines and inactive regions of cells into an RGB image.

    shapes: as in `draw_module`. cells: uint8 (h, w) each, as they were judged.
    """
    for corners, shape, cell in zip(corners_in(image, grid), shapes, cells):
        start = np.clip(np.floor(corners.min(0)), 0, image.size).astype(int)
        end = np.clip(np.ceil(corners.max(0)) + 1, 0, image.size).astype(int)
        if shape is None or (start >= end).any():
            continue
        numbers, within = seen_of_cell(shape_numbers(shape), cell.shape)
        corners = (corners - start).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(within, corners)
        shortest = np.linalg.norm(corners - np.roll(corners, 1, 0), axis=1).min()
        wide = max(1, round(LINE_WIDTH * SHAPE_SIDE / shortest))
        for number in (SHAPE_REGION, SHAPE_LINE):
            mask = (numbers == number).astype(np.uint8) * SHAPE_OPACITY[number]
            if number == SHAPE_LINE:
                mask = cv2.dilate(mask, np.ones((wide, wide), np.uint8))
            mask = cv2.warpPerspective(mask, matrix, (end - start).tolist())
            image.paste(colour_of(number), tuple(start.tolist()), Image.fromarray(mask))


def seen_of_cell(numbers, size):
    """What lies on a cell itself of `shape_numbers`, and where its corners are in them, float32 (4, 2).

    size: (height, width) of the cell. The network sees a cell that is not square mirrored at its longer edges.
    """
    side = len(numbers)
    high, wide = (side, side) if is_square(size) else (side * pixels / max(size) for pixels in size)
    kept = np.zeros_like(numbers)
    place = tuple(slice(round((side - pixels) / 2), round((side + pixels) / 2)) for pixels in (high, wide))
    kept[place] = numbers[place]
    corners = np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]]) / 2
    return kept, (corners + side / 2 - 0.5).astype(np.float32)


def colour_of(number):
    """The colour of a line or region, (red, green, blue)."""
    return SHAPE_COLOURS[3 * number : 3 * number + 3]


def draw_cells(image, grid, verdicts, probabilities):
    """Draw the outline of each cell into an RGB image, which may be smaller or larger than the grid's."""
    factor = image.width / (2 * grid.centre[0] + 1)
    corners = corners_in(image, grid)
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


def legend_of_shapes(shapes):
    """Pairs (colour, text): what the colours of lines and regions in cells mean."""
    numbers = {int(number) for shape in shapes if shape is not None for number in np.unique(shape_numbers(shape))}
    entries = [(colour_of(SHAPE_LINE), "crack line (estimate)")] if SHAPE_LINE in numbers else []
    return entries + ([(colour_of(SHAPE_REGION), "inactive region")] if SHAPE_REGION in numbers else [])


def draw_legend(draw, font, top, entries):
    """Draw the entries of a legend, a square of its colour before each text, below the row `top`."""
    x = 8
    for colour, text in entries:
        if colour:
            draw.rectangle((x, top + 10, x + 14, top + 24), colour, "black")
        draw.text((x + 20 if colour else x, top + 17), text, "black", font, "lm")
        x += ENTRY_GAP + draw.textlength(text, font)
