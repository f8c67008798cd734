"""Cut the image of a whole module into its cells, and tell what is doubtful."""

import re
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from elcells.data.images import IMAGE_SIZE, as_gray
from elcells.data.naming import Names
from elcells.data.tables import read_rows
from elcells.files import InputError, counted, reason
from elcells.modules.grid import Grid
from elcells.modules.search import FOUND, LEAD, SURE, find_grid, rough_score

DIM_BORDER = 0.6  # of the brightness of the line of cells beside it: the outer edge of a darker one can't be located
BLACK = 0.25  # of the module's median brightness: darker cells are black
MANY_BLACK = 0.2  # of a module's cells
BEYOND = 0.03  # of a cell, by which a module may leave the image
MOST_PIXELS = 2**15 - 2  # along a side of an image; OpenCV takes no more
NEAR_SQUARE = 0.4  # octaves, at most, by which cells are off a square, narrowed by an oblique view, and become one
NEAR_HALF = 0.2  # the same for half cells
MOST_LINES_OF_CELLS = 40
PORTRAIT = ((6, 10), (6, 12), (6, 20), (6, 24), (4, 9), (8, 16), (8, 12))  # columns, rows
USUAL = (*PORTRAIT, *((columns, rows) for rows, columns in PORTRAIT))  # that are guessed
GUESS_SIZE = 900  # pixels of the longer side of an image whose grid is guessed
GUESS_LEAD = 0.05  # by which the score of a guess must exceed the next one's
CORNERS = [f"{axis}{k}" for k in (1, 2, 3, 4) for axis in "xy"]  # columns of tables


@dataclass(frozen=True, eq=False)
class CutModule:
    """What is known of a module's image, and its cells where a module was found."""

    filename: str
    columns: int
    rows: int
    score: float | None = None  # up to 1; None where the image shows nothing
    lead: float | None = None  # over the best other grid
    sure: bool = False
    why: str = ""  # it is not sure
    error: str = ""  # why there are no cells
    notes: tuple = ()  # assumptions about the file, str each
    cell_pixels: int | None = None  # longer side of a cell in the image
    bend: float | None = None  # the lens
    corners: tuple = ()  # x, y of the four, clockwise from the upper left, in pixels
    grid: Grid | None = None
    cells: tuple = ()  # uint8 (h, w) each, row by row
    black: np.ndarray | tuple = ()  # bool (N,)
    nodes: tuple = ()  # x, y of the cells' corners in pixels, row by row; they follow the lens
    image: Image.Image | None = None  # mode L, in its own resolution

    def without_images(self):
        """The same without its images and grid, which would take much memory for many modules."""
        return replace(self, grid=None, cells=(), black=(), image=None)


def grid_size(text):
    """(columns, rows) of a text such as 10x6; raises InputError for another."""
    match = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", text)
    columns, rows = map(int, match.groups()) if match else (0, 0)
    if not 1 <= columns <= MOST_LINES_OF_CELLS or not 1 <= rows <= MOST_LINES_OF_CELLS or columns * rows < 2:
        raise InputError(f"grid {text!r}: expected COLUMNSxROWS as the image shows them, such as 10x6")
    return columns, rows


def read_corners(path):
    """Rough corners of modules: list of (line, file name, (4, 2) pixels x, y, clockwise from the upper left).

    The table's columns are filename, x1, y1 … x4, y4, as in modules.csv. Raises InputError, naming the line.
    """
    corners = []
    for line, row in read_rows(path, ["filename", *CORNERS]).iterrows():
        if all(row[column] == "" for column in CORNERS):
            continue
        try:
            values = [float(row[column]) for column in CORNERS]
        except ValueError:
            raise InputError(f"{path}, line {line}: x1 … y4 must be eight numbers, the corners in pixels") from None
        values = np.array(values).reshape(4, 2)
        if not is_clockwise(values):
            raise InputError(
                f"{path}, line {line}: the corners of {row['filename']} make no quadrilateral; give the upper left, "
                "upper right, lower right and lower left one, in pixels"
            )
        corners.append((line, row["filename"], values))
    return corners


def is_clockwise(corners):
    """True if corners (4, 2) make a convex quadrilateral, clockwise; False where one is no number."""
    edges = np.roll(corners, -1, 0) - corners
    following = np.roll(edges, -1, 0)
    return bool((edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all())


def corners_of_images(path, names):
    """Corners of images from a table (`read_corners`): {name: (4, 2)}, of those images that it has (`Names.meant`)."""
    images = Names(path, names)
    corners = {}
    for line, filename, values in read_corners(path):
        corners.update(dict.fromkeys(images.meant(line, filename), values))
    return corners


def move_inwards(cells, outer, inner):
    """Move the corners numbered `outer` of cells (N, 4, 2) by one pixel towards the `inner` ones, in place."""
    inwards = cells[:, inner] - cells[:, outer]
    cells[:, outer] += inwards / np.linalg.norm(inwards, axis=-1, keepdims=True)


def shape_of_cells(size):
    """(width, height) of cells cut from an image where they have `size` (2,): squares or halves where that is near."""
    width, height = np.round(size * min(1, IMAGE_SIZE / size.max())).astype(int)
    longer = max(width, height)
    octaves = np.log2(width / height)
    if abs(octaves) < NEAR_SQUARE:
        return longer, longer
    if abs(octaves - 1) < NEAR_HALF:
        return longer, longer // 2
    if abs(octaves + 1) < NEAR_HALF:
        return longer // 2, longer
    return width, height


def cut_cells(image, grid):
    """Upright images of a grid's cells, row by row: list of uint8 (h, w).

    image: float32 (H, W) in 0..255. Cells keep the image's resolution, up to IMAGE_SIZE pixels along the longer side,
    but those that an oblique view narrowed are stretched to squares. Each is taken by the perspective of its own four
    corners, which follows the lens. At the module's border, where the light fades, cells are cropped by one pixel: a
    dark rim looks like an inactive region.
    """
    quads = grid.cells()
    move_inwards(quads[:, 0], outer=[0, 3], inner=[1, 2])
    move_inwards(quads[:, -1], outer=[1, 2], inner=[0, 3])
    move_inwards(quads[0], outer=[0, 1], inner=[3, 2])
    move_inwards(quads[-1], outer=[3, 2], inner=[0, 1])
    size = grid.cell_size()
    width, height = map(int, shape_of_cells(size))
    factors = np.maximum(1, size / (width, height))
    if factors.max() > 1.2:
        pixels = [max(1, round(n / factor)) for n, factor in zip(image.shape[::-1], factors)]
        quads = (quads + 0.5) * pixels / image.shape[::-1] - 0.5
        image = np.asarray(Image.fromarray(image).resize(pixels, Image.Resampling.BILINEAR))
    quads = quads.astype(np.float32)
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    cells = []
    for corners in quads.reshape(-1, 4, 2):
        transform = cv2.getPerspectiveTransform(corners, target)
        cell = cv2.warpPerspective(image, transform, (width, height), flags=cv2.INTER_CUBIC)  # linear blurs thin cracks
        cells.append(np.rint(cell).clip(0, 255).astype(np.uint8))
    return cells


def black_cells(cells):
    """Which of a module's cells are black: bool (N,). In an image that is dark as a whole all of them are."""
    brightness = np.array([cell.mean() for cell in cells]) / 255
    return brightness < BLACK * max(np.median(brightness), 0.1)


def has_dim_border(brightness):
    """True if a border line of cells is much darker than the line beside it; brightness: (rows, columns)."""
    from_each_side = (brightness, brightness[::-1], brightness.T, brightness.T[::-1])
    return any(len(b) > 2 and np.median(b[0] / np.maximum(b[1], 1)) < DIM_BORDER for b in from_each_side)


def doubts(grid, shape, score, lead, cells, corners_given=False):
    """What is not sure about a grid, a list of clauses; empty where it is sure.

    shape: (height, width) of the image. score, lead: from find_grid. cells: from cut_cells. corners_given: the user
    gave them, so that doubts about other grids and dark borders do not apply.
    """
    black = black_cells(cells)
    brightness = np.array([np.median(cell) for cell in cells]).reshape(grid.rows, grid.columns)
    nodes = grid.nodes()
    size = grid.cell_size()
    halves = max(size) > 1.5 * min(size) and min(grid.columns, grid.rows) > 1
    across = halves and (grid.rows > grid.columns) != (size[0] > size[1])
    outside = (nodes < -0.5 - BEYOND * size) | (nodes > np.array(shape[::-1]) - 0.5 + BEYOND * size)
    clauses = {
        "the grid is not clearly seen": score < SURE,
        "another place of the grid fits nearly as well": lead < LEAD and not corners_given,
        f"{counted(int(black.sum()), 'cell is', 'cells are')} black": black.mean() > MANY_BLACK,
        "a border line of cells is dark": has_dim_border(brightness) and not corners_given,
        f"half cells would lie across the strings: is it really {grid.columns}x{grid.rows}?": across,
        "the module goes beyond the image": outside.any(),
    }
    return [clause for clause, applies in clauses.items() if applies]


def cut_image(path, columns, rows, corners=None, bend=None):
    """Cut the image of a module: a CutModule, whose `error` says why where none was found.

    corners, bend: as in find_grid.
    """
    cv2.setNumThreads(1)  # modules are cut in several processes, while the network's threads work
    module = CutModule(str(path), columns, rows)
    try:
        gray, notes = as_gray(path)
    except InputError as error:
        return replace(module, error=reason(error))
    image = np.asarray(gray, np.float32)
    if max(image.shape) > MOST_PIXELS:
        error = f"{path}: {max(image.shape)} pixels along a side, more than the {MOST_PIXELS} allowed; make it smaller"
        return replace(module, notes=tuple(notes), error=error)
    if min(image.shape) < 64 or np.ptp(image[::4, ::4]) < 8:
        return replace(module, notes=tuple(notes), error=f"{path}: too small or too even to show a module")
    grid, score, lead = find_grid(image, columns, rows, corners, bend)
    module = replace(module, notes=tuple(notes), score=score, lead=lead)
    if not score >= FOUND:
        problem = f"no module of {columns}x{rows} cells found (score {score:.2f})"
        way_out = "is --grid right? Else give --corners" if corners is None else "are --grid and its corners right?"
        return replace(module, error=f"{path}: {problem}; {way_out}")
    cells = tuple(cut_cells(image, grid))
    why = doubts(grid, image.shape, score, lead, cells, corners is not None)
    pixels = round(float(grid.cell_size().max()))
    module = replace(
        module,
        corners=tuple(map(float, grid.corners().ravel())),
        nodes=tuple(np.round(grid.nodes(), 1).ravel().tolist()),
        grid=grid,
        bend=grid.bend,
        cell_pixels=pixels,
        cells=cells,
        black=black_cells(cells),
    )
    return replace(module, sure=not why, why=", ".join(why), image=gray.convert("L"))


def guess_grid(path):
    """The likeliest of the USUAL grids for an image, "10x6", or "" where none stands out."""
    gray, _ = as_gray(path)
    gray.thumbnail((GUESS_SIZE, GUESS_SIZE))
    image = np.asarray(gray, np.float32)
    guesses = sorted(((rough_score(image, *grid), grid) for grid in USUAL), reverse=True)
    best, (columns, rows) = guesses[0]
    next_best, _ = guesses[1]
    return f"{columns}x{rows}" if best >= SURE and best - next_best > GUESS_LEAD else ""
