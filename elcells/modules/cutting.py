"""An image of a whole module cut into its cells, and what is known of it."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from elcells.data.images import IMAGE_SIZE, as_gray
from elcells.data.tables import read_rows
from elcells.files import InputError, reason
from elcells.modules.outline import FOUND, LEAD, SURE, find_grid

DIM_BORDER = 0.6  # a darker border line of cells, against the line beside it, does not tell where it ends
DARK = 0.25  # a darker cell, against its module's middle one, is black
PORTRAIT = ((6, 10), (6, 12), (6, 20), (6, 24), (4, 9), (8, 16), (8, 12))
USUAL = (*PORTRAIT, *((rows, columns) for columns, rows in PORTRAIT))  # grids that are guessed
DRAWN = 1600  # longest side in pixels of a module's image with its verdicts
CORNERS = [f"{axis}{k}" for k in (1, 2, 3, 4) for axis in "xy"]


def grid_size(text):
    """(columns, rows) of a text such as 10x6; raises InputError for another."""
    found = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", text)
    columns, rows = map(int, found.groups()) if found else (0, 0)
    if not 1 <= columns <= 40 or not 1 <= rows <= 40 or columns * rows < 2:
        raise InputError(f"grid {text!r}: expected COLUMNSxROWS as the image shows them, such as 10x6")
    return columns, rows


def read_corners(path):
    """Rough corners of modules: dict of image's file name -> (4, 2) pixels x, y, clockwise from the upper left.

    The table's columns are filename, x1, y1 … x4, y4, as modules.csv has them. Raises InputError, naming the line.
    """
    corners = {}
    for line, row in read_rows(path, ["filename", *CORNERS]).iterrows():
        if all(row[k] == "" for k in CORNERS):
            continue
        try:
            corners[Path(row["filename"]).name] = np.array([float(row[k]) for k in CORNERS]).reshape(4, 2)
        except ValueError:
            raise InputError(f"{path}, line {line}: x1 … y4 must be eight numbers, the corners in pixels") from None
    return corners


def cut_cells(image, grid, most=IMAGE_SIZE):
    """Upright images of a grid's cells, row by row: list of uint8 (h, w).

    image: float32 (H, W) in 0..255. A cell keeps the image's resolution, up to `most` pixels along its longer side;
    square and half cells get exactly that shape. Each is taken by the perspective of its own four corners, so the lens
    is followed cell by cell. At the module's border, where light fades, they begin a pixel of the resized further in:
    a dark rim looks like an inactive region.
    """
    size, quads = grid.cell_size(), grid.cells()
    for line, near, far in (
        (quads[:, 0], [0, 3], [1, 2]),
        (quads[:, -1], [1, 2], [0, 3]),
        (quads[0], [0, 1], [3, 2]),
        (quads[-1], [3, 2], [0, 1]),
    ):
        inward = line[:, far] - line[:, near]
        line[:, near] += inward / np.linalg.norm(inward, axis=-1, keepdims=True)
    width, height = np.round(size * min(1, most / size.max())).astype(int)
    octaves, long = np.log2(width / height), max(width, height)
    if abs(octaves) < 0.2:
        width = height = long
    elif abs(abs(octaves) - 1) < 0.2:
        width, height = (long, long // 2) if octaves > 0 else (long // 2, long)
    factor = max(1.0, size.max() / most)
    resized = Image.fromarray(image)
    if factor > 1.2:
        resized = resized.resize([max(1, round(n / factor)) for n in resized.size], Image.Resampling.BILINEAR)
    scale = np.array(resized.size) / image.shape[::-1]
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    cells = []
    for corners in quads.reshape(-1, 4, 2):
        pixels = (corners + 0.5) * scale
        equations = [[x, y, 1, 0, 0, 0, -u * x, -u * y] for (x, y), (u, _) in zip(target, pixels)]
        equations += [[0, 0, 0, x, y, 1, -v * x, -v * y] for (x, y), (_, v) in zip(target, pixels)]
        coefficients = np.linalg.solve(np.array(equations), pixels.T.ravel())
        cell = resized.transform((width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        cells.append(np.clip(np.rint(np.asarray(cell)), 0, 255).astype(np.uint8))
    return cells


def black_cells(cells):
    """Which of a module's cells are black: bool (N,); dead ones, against its middle one, or all of a black image."""
    brightness = np.array([cell.mean() for cell in cells]) / 255
    return brightness < DARK * max(np.median(brightness), 0.1)


def doubts(grid, shape, score, lead, cells, given=False):
    """What is not sure about a grid, a list of clauses; empty where it is sure.

    shape: (height, width) of the image. score, lead: from find_grid. cells: from cut_cells. given: the user gave the
    corners, so neither another place of the grid nor a dark border leads astray.
    """
    columns, rows = grid.columns, grid.rows
    black, why = black_cells(cells), []
    brightness = np.array([np.median(cell) for cell in cells]).reshape(rows, columns)
    borders = [(a[0], a[1]) for a in (brightness, brightness[::-1], brightness.T, brightness.T[::-1]) if len(a) > 2]
    if score < SURE:
        why.append("the grid is not clearly seen")
    if lead < LEAD and not given:
        why.append("another place of the grid fits nearly as well")
    if black.mean() > 0.2:
        why.append(f"{black.sum()} cells are black")
    if not given and any(np.median(outer / np.maximum(inner, 1)) < DIM_BORDER for outer, inner in borders):
        why.append("a border line of cells is dark")
    width, height = grid.cell_size()
    halves = max(width, height) > 1.5 * min(width, height) and min(columns, rows) > 1
    if halves and (rows > columns) != (width > height):
        why.append(f"half cells would lie across the strings: is it really {columns}x{rows}?")
    inside = grid.nodes()
    beyond = 0.03 * grid.cell_size()
    if (inside < -0.5 - beyond).any() or (inside > np.array(shape[::-1]) - 0.5 + beyond).any():
        why.append("the module goes beyond the image")
    return why


def cut_image(path, columns, rows, corners=None, bend=None):
    """Cut the image of a module.

    Returns a dict: filename, columns, rows, score (up to 1), lead (over the best other grid), sure (0 or 1), why (what
    is not sure), cell_pixels, bend, x1 … y4 (the module's corners), error; and, where a module was found: grid, cells
    (list of uint8), black (bool (N,)), notes, small (gray PIL image of at most DRAWN pixels).
    """
    about = {"filename": str(path), "columns": columns, "rows": rows, "sure": 0, "why": "", "error": "", "notes": []}
    try:
        gray, about["notes"] = as_gray(path)
    except InputError as error:
        return {**about, "error": reason(error)}
    image = np.asarray(gray, np.float32)
    if min(image.shape) < 64 or np.ptp(image[::4, ::4]) < 8:
        return {**about, "error": f"{path}: too small or too even to show a module"}
    grid, score, lead = find_grid(image, columns, rows, corners, bend)
    about.update(score=score, lead=lead)
    if not score >= FOUND:
        return {**about, "error": f"{path}: no module of {columns}x{rows} cells found (score {score:.2f})"}
    cells = cut_cells(image, grid)
    black = black_cells(cells)
    why = doubts(grid, image.shape, score, lead, cells, corners is not None)
    small = gray.convert("L")
    small.thumbnail((DRAWN, DRAWN))
    return {
        **about,
        "sure": int(not why),
        "why": ", ".join(why),
        "cell_pixels": round(float(grid.cell_size().max())),
        "bend": grid.bend,
        **dict(zip(CORNERS, grid.corners().ravel())),
        "grid": grid,
        "cells": cells,
        "black": black,
        "small": small,
    }


def guess_grid(path):
    """The likeliest of the USUAL grids for an image, "10x6", or "" where none stands out."""
    gray = as_gray(path)[0]
    gray.thumbnail((900, 900))
    image = np.asarray(gray, np.float32)
    scores = sorted(((find_grid(image, *grid, quick=True)[1], grid) for grid in USUAL), reverse=True)
    return "{}x{}".format(*scores[0][1]) if scores[0][0] >= SURE and scores[0][0] - scores[1][0] > 0.05 else ""
