"""Images of whole modules composed of ELPV cells, whose corners are known.

They have perspective, turn, lens (barrel), gaps, frame, neighbouring modules, dead cells, a dead third, dim borders,
vignetting, noise and blur.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.transform import ProjectiveTransform

import data

USUAL_LAYOUT = (6, 10, False)  # columns, rows, half-cut?
OTHER_LAYOUTS = ((6, 12, False), (8, 16, False), (6, 20, True), (6, 24, True), (1, 10, False), (4, 9, False))
CELL_SIDES = (100, 120, 140, 160, 200, 240, 300)  # pixels of a cell
CELL_SIDE_SHARES = (0.2, 0.2, 0.2, 0.15, 0.12, 0.08, 0.05)
LEAST_CELLS = 60  # of an ELPV module that modules are composed of


@dataclass(frozen=True)
class Level:
    """The most of each difficulty that modules have."""

    turn: float  # degrees
    keystone: float  # share of a side
    lens: float  # relative displacement at the corners
    beside: float  # share of modules with others beside them
    dead: int  # cells
    light: float  # loss of brightness towards the corners
    noise: float  # gray levels
    blur: float  # % of a cell
    dead_corner: bool = False  # in half of the modules
    dead_third: bool = False
    dim_border: bool = False  # a border line at 15 to 60 % of the light
    filled: bool = False  # up to the image's edge
    layouts: tuple = (USUAL_LAYOUT,)


EASY = Level(turn=3, keystone=0.05, lens=0, beside=0, dead=0, light=0.15, noise=3, blur=0.5)
MEDIUM = Level(turn=8, keystone=0.1, lens=0.02, beside=0.5, dead=2, light=0.35, noise=5, blur=0.8)
LEVELS = {
    "easy": EASY,
    "medium": MEDIUM,
    "hard": Level(15, 0.15, 0.04, beside=0.85, dead=5, light=0.55, noise=8, blur=1.1, dead_corner=True),
    "string": replace(MEDIUM, dead=0, dead_third=True),
    "dim": replace(MEDIUM, dead=0, dim_border=True),
    "layouts": replace(MEDIUM, layouts=OTHER_LAYOUTS),
    "filled": replace(EASY, turn=0.7, keystone=0.01, filled=True),
}


class ElpvCells:
    """ELPV's cells by module; modules: those of at least LEAST_CELLS cells."""

    def __init__(self, path="data.csv"):
        self.table = data.read_table(path)
        data.fill_images(self.table)
        self.modules = [module for module, rows in self.table.groupby("module") if len(rows) >= LEAST_CELLS]

    def images(self, module, count, side):
        """float32 (count, side, side), busbars upright; if a module has fewer cells, they are repeated."""
        images = []
        for path in self.table["path"][self.table["module"] == module][:count]:
            image = Image.open(path).resize((side, side), Image.Resampling.BILINEAR)
            images.append(np.rot90(np.asarray(image, np.float32)))
        return np.resize(images, (count, side, side))


class Layout:
    """Where the cells of a portrait module lie, drawn at random; in pixels from the corner of the first cell."""

    def __init__(self, rng, shape, side):
        self.columns, self.rows, self.half = shape
        if side is None:
            side = rng.choice(CELL_SIDES, p=CELL_SIDE_SHARES) * (0.6 if self.columns > 6 else 1)
        side = int(side)
        side += side % 2
        self.side = side  # width of a cell
        self.cell_height = side // 2 if self.half else side
        no_gaps = rng.random() < 0.25 and not self.half
        gap = 0.0 if no_gaps else rng.uniform(0.02, 0.04)
        self.gap_x = round(gap * side)
        self.gap_y = round(gap * side * rng.uniform(0.8, 1.25))
        self.x = np.arange(self.columns) * (side + self.gap_x)  # left sides of the cells
        self.y = np.arange(self.rows) * (self.cell_height + self.gap_y)  # upper sides
        if self.half:
            self.y[self.rows // 2 :] += int(side * rng.uniform(0.02, 0.12))
        self.edge = int(side * rng.uniform(0.06, 0.16))  # backsheet around the cells
        self.frame = int(side * rng.uniform(0.04, 0.12))
        self.width = int(self.x[-1] + side)
        self.height = int(self.y[-1] + self.cell_height)

    def nodes(self):
        """Corners of the cells, in the middle of the gaps: (rows + 1, columns + 1, 2) pixels."""
        x = np.append(self.x, self.width + self.gap_x) - self.gap_x / 2
        y = np.append(self.y, self.height + self.gap_y) - self.gap_y / 2
        middle = self.rows // 2
        if self.half:  # the middle gap is wider
            y[middle] = (self.y[middle] + self.y[middle - 1] + self.cell_height + self.gap_y) / 2 - self.gap_y / 2
        return np.stack(np.meshgrid(x, y), -1)


def tiles_of(cells, module, layout):
    """Images of a module's cells, row by row: float32 (N, cell_height, side)."""
    side = layout.side
    count = layout.columns * layout.rows
    if not layout.half:
        return cells.images(module, count, side)
    whole = cells.images(module, count // 2, side)
    edge = max(1, round(0.012 * side))
    whole[:, side // 2 - edge : side // 2 + edge] *= 0.5  # each half has dark edges of its own
    halves = whole.reshape(-1, layout.columns, 2, side // 2, side).swapaxes(1, 2)
    return halves.reshape(-1, side // 2, side)


def flat_module(layout, tiles, gap_level, backsheet, dark):
    """The gray levels of a module with its edge, float32 (H, W); tiles: of tiles_of, dark: of draw_dark_cells."""
    module = np.full((layout.height, layout.width), gap_level, np.float32)
    corners = list(itertools.product(layout.y, layout.x))
    half_y = layout.gap_y // 2
    half_x = layout.gap_x // 2
    if layout.columns > 1:
        for place, share in sorted(dark.items()):  # the light in the gaps is the cells' light
            y, x = corners[place]
            rows = slice(max(y - half_y, 0), y + layout.cell_height + half_y)
            columns = slice(max(x - half_x, 0), x + layout.side + half_x)
            module[rows, columns] = gap_level * share
    for place, (y, x) in enumerate(corners):
        module[y : y + layout.cell_height, x : x + layout.side] = tiles[place] * dark.get(place, 1.0)
    return np.pad(module, layout.edge, constant_values=backsheet)


def paste(canvas, y, x, part):
    """Draw a part (h, w) with its upper left corner at y, x, as far as it lies within the canvas."""
    top = max(-y, 0)
    left = max(-x, 0)
    shown = part[top : max(canvas.shape[0] - y, 0), left : max(canvas.shape[1] - x, 0)]
    height, width = shown.shape
    canvas[y + top : y + top + height, x + left : x + left + width] = shown


def draw_neighbours(canvas, rng, around, cells, layout, gap_level):
    """Draw one to three modules beside the one at `around` pixels from the canvas's corner."""
    sides = rng.choice(4, rng.integers(1, 4), replace=False)
    space = 2 * (layout.edge + layout.frame) + int(rng.uniform(0, 0.08) * layout.side)
    down = layout.height + space
    right = layout.width + space
    places = ((-down, 0), (down, 0), (0, -right), (0, right))
    for side in sides:
        y, x = places[side]
        tiles = tiles_of(cells, rng.choice(cells.modules), layout)
        gain = rng.uniform(0.7, 1.2)
        module = flat_module(layout, tiles * gain, gap_level * gain, rng.uniform(4, 18), {})
        paste(canvas, around + y - layout.edge, around + x - layout.edge, module)


def draw_dark_cells(rng, level, layout):
    """Random dark cells: {place, row by row: share of the light}."""
    columns = layout.columns
    count = columns * layout.rows
    row, column = np.divmod(np.arange(count), columns)
    dark = {}
    if level.dead_third:
        third = rng.integers(3)
        dark = dict.fromkeys(np.flatnonzero(column * 3 // columns == third), 0.07)
    if level.dim_border:
        lines = (row == 0, row == layout.rows - 1, column == 0, column == columns - 1)
        line = lines[rng.integers(4)]
        gain = rng.uniform(0.15, 0.6)
        dark = {place: gain * rng.uniform(0.8, 1.2) for place in np.flatnonzero(line)}
    if level.dead:
        dead = rng.choice(count, rng.integers(0, level.dead + 1), replace=False)
        dark = {place: rng.uniform(0.03, 0.2) for place in dead}
    if level.dead_corner and rng.random() < 0.5:
        dark[rng.choice([0, columns - 1, count - columns, count - 1])] = 0.05
    return dark


@dataclass(frozen=True)
class Truth:
    """What is true of a composed module."""

    nodes: np.ndarray  # corners of its cells, float (rows + 1, columns + 1, 2) pixels x, y
    grid: tuple  # (columns, rows)
    side: int  # pixels of a cell before perspective
    dark: np.ndarray  # bool (N,), cells that were made dark


def compose(cells, seed, level, side=None, lens=None):
    """A module's image, uint8 (H, W), and its Truth. lens: fixed bend; None for a random one."""
    rng = np.random.default_rng(seed)
    level = LEVELS[level]
    shape = level.layouts[seed % len(level.layouts)]
    landscape = rng.random() >= 0.5
    layout = Layout(rng, shape, side)
    tiles = tiles_of(cells, cells.modules[seed % len(cells.modules)], layout)
    around = 0 if level.filled else layout.edge + layout.frame + int(2.2 * layout.side)
    canvas = np.full((layout.height + 2 * around, layout.width + 2 * around), rng.uniform(0, 10), np.float32)
    gap_level = rng.uniform(0.3, 0.55) * np.median(tiles)
    if rng.random() < level.beside:
        draw_neighbours(canvas, rng, around, cells, layout, gap_level)
    dark = draw_dark_cells(rng, level, layout)
    module = flat_module(layout, tiles, gap_level, rng.uniform(4, 18), dark)
    paste(canvas, around - layout.edge, around - layout.edge, module)
    nodes = layout.nodes() + around - 0.5
    order = np.arange(layout.columns * layout.rows).reshape(layout.rows, layout.columns)
    size = layout.width, layout.height
    if landscape:  # a quarter turn to the left
        canvas = np.rot90(canvas)
        size = layout.height, layout.width
        nodes = np.rot90(np.stack([nodes[..., 1], canvas.shape[0] - 1 - nodes[..., 0]], -1))
        order = np.rot90(order)
    camera = Camera(rng, level, size, around, lens)
    image = photograph(canvas, camera, rng, level, layout.side)
    return image, Truth(camera.to_image(nodes), order.shape[::-1], layout.side, np.isin(order.ravel(), list(dark)))


class Camera:
    """How an image shows a flat canvas with a module of `size` (width, height) in its middle, drawn at random."""

    def __init__(self, rng, level, size, around, lens):
        width, height = size
        quad = np.array([[0, 0], [width, 0], [width, height], [0, height]], float) + around
        centred = quad - quad.mean(0)
        keystone_x, keystone_y = rng.uniform(-level.keystone, level.keystone, 2)
        stretch = np.stack([1 + keystone_x * centred[:, 1] / height, 1 + keystone_y * centred[:, 0] / width], 1)
        turn = np.deg2rad(rng.uniform(-level.turn, level.turn))
        seen = (centred * stretch) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        span = np.ptp(seen, axis=0)
        share = 1.0 if level.filled else rng.uniform(0.72, 0.92)  # of the image
        self.pixels = np.ceil(span / share).astype(int)  # width and height of the image
        if not level.filled:
            self.pixels = np.maximum(self.pixels, int(self.pixels.max() * rng.uniform(0.6, 0.75)))
        shift = rng.uniform(-0.3, 0.3, 2) * (self.pixels - span) / 2
        self.middle = (self.pixels - 1) / 2
        self.radius = np.hypot(*self.pixels) / 2
        self.bend = -rng.uniform(0, level.lens) if lens is None else lens
        seen = seen - (seen.max(0) + seen.min(0)) / 2 + self.middle + shift
        self.perspective = ProjectiveTransform.from_estimate(quad, seen)  # from the canvas, before distortion

    def to_image(self, points):
        """Pixels (..., 2) of points (..., 2) of the canvas."""
        flat = (self.perspective(points.reshape(-1, 2)) - self.middle) / self.radius
        bent = self.radius * flat * (1 + self.bend * (flat**2).sum(-1, keepdims=True))
        return (self.middle + bent).reshape(points.shape)

    def to_canvas(self, relative):
        """Points (N, 2) of the canvas for points (N, 2) of the image, from its middle in units of its radius."""
        flat = relative
        for _ in range(8):
            flat = relative / (1 + self.bend * (flat**2).sum(-1, keepdims=True))
        return self.perspective.inverse(self.middle + self.radius * flat)


def photograph(canvas, camera, rng, level, side):
    """The canvas as a camera sees it, uint8 (H, W), with vignetting, blur and noise; side: pixels of a cell."""
    width, height = camera.pixels
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    relative = (pixels.reshape(-1, 2) - camera.middle) / camera.radius
    source = camera.to_canvas(relative)
    mode = "nearest" if level.filled else "constant"
    image = ndimage.map_coordinates(canvas, [source[:, 1], source[:, 0]], order=1, mode=mode, cval=5)
    image = image.reshape(height, width)
    relative = relative.reshape(height, width, 2)
    light = 1 - level.light * rng.uniform(0, 1) * (relative**2).sum(-1)
    light = light * np.clip(1 + relative @ rng.uniform(-0.7, 0.7, 2) * level.light, 0.2, 2)
    image = ndimage.gaussian_filter(image * light, rng.uniform(0.2, 1) * level.blur / 100 * side)
    image = image * rng.uniform(0.6, 1.2) + rng.normal(0, rng.uniform(0.3, 1) * level.noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
