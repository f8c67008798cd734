"""The grid of a module's cells in its image: perspective, lens, each line's place; measured, fitted, and scored.

Every cell side is looked at across itself: a gap between two cells is darker than both, the module's border is where
light ends. A robust least-squares fit follows what is seen; busbars, dead cells and dirt are outvoted.
"""

import itertools

import numpy as np

STEP, GAP, FLANK = 0.005, 0.014, (0.025, 0.065)  # in cells: between samples; half a gap; where its surroundings are
WIDER = (1, 2)  # times GAP and FLANK: the second for small or blurred images
DIM = 0.3  # of the brightness around: darker shows no gaps
RIM = 0.01  # in cells: how far within the outermost lines the light ends, as a rule
ALIKE = 30  # how much a border that differs in this counts, against a side that is off by a scale
EVEN = 2.0  # how much a line off its even place counts, against a side that is off by as much
NORMAL_BEND = 0.6  # how much a lens counts, as the relative displacement at the corners


class Grid:
    """Places of a grid's points in the image: perspective of the unit square, then radial distortion.

    quad: (4, 2) corners x, y in pixels, clockwise from the upper left, before distortion. bend: relative displacement
    at the image's corners (below 0: barrel). x, y: places of the lines, 0 to columns (rows), even at first.
    shape: (height, width) of the image.
    """

    def __init__(self, quad, columns, rows, shape, bend=0.0):
        self.quad, self.columns, self.rows, self.bend = np.asarray(quad, float), columns, rows, bend
        self.x, self.y = np.arange(columns + 1.0), np.arange(rows + 1.0)
        self.centre, self.radius = (np.array(shape[::-1]) - 1) / 2, np.hypot(*shape) / 2

    def copy(self, quad=None, bend=None, x=None, y=None):
        """A grid that differs in what is given."""
        new = Grid(self.quad if quad is None else quad, self.columns, self.rows, (2, 2))
        new.bend = self.bend if bend is None else bend
        new.x, new.y = (self.x if x is None else x).copy(), (self.y if y is None else y).copy()
        new.centre, new.radius = self.centre, self.radius
        return new

    def scaled(self, factor):
        """The grid in an image of `factor` times as many pixels along each side."""
        new = self.copy((self.quad + 0.5) * factor - 0.5)
        new.centre, new.radius = (self.centre + 0.5) * factor - 0.5, self.radius * factor
        return new

    def __call__(self, xy):
        """Pixels (..., 2) of points (..., 2) in cells: x to columns, y to rows."""
        u, v = xy[..., :1] / self.columns, xy[..., 1:] / self.rows
        a, b, c, d = self.quad
        (p, r), (q, s), (e, f) = b - c, d - c, a - b + c - d  # solved by hand: called thousands of times
        det = p * s - q * r
        g, h = ((e * s - q * f) / det, (p * f - e * r) / det) if abs(det) > 1e-12 else (0.0, 0.0)
        flat = (a + u * (b - a + g * b) + v * (d - a + h * d)) / (1 + g * u + h * v) - self.centre
        return self.centre + flat * (1 + self.bend / self.radius**2 * (flat**2).sum(-1, keepdims=True))

    def nodes(self):
        """Corners of the cells, float (rows + 1, columns + 1, 2), x and y in pixels."""
        return self(np.stack(np.meshgrid(self.x, self.y), -1))

    def cell_size(self):
        """Mean width and height of a cell in pixels, float (2,)."""
        n = self.nodes()
        return np.array([np.linalg.norm(np.diff(n, axis=a), axis=-1).mean() for a in (1, 0)])

    def corners(self):
        """The module's corners in the image, float (4, 2), clockwise from the upper left."""
        n = self.nodes()
        return n[[0, 0, -1, -1], [0, -1, -1, 0]]

    def cells(self):
        """Corners of every cell, float (rows, columns, 4, 2), clockwise from the upper left."""
        n = self.nodes()
        return np.stack([n[:-1, :-1], n[:-1, 1:], n[1:, 1:], n[1:, :-1]], 2)


def sides(grid):
    """Sides of all cells as arrays: middle, along, across (each (E, 2)), line (E,), and end (E,).

    line: the number of the line that a side lies on, 1000 more for horizontal ones. end: 1 on the module's left and
    upper border, -1 on the right and lower one, else 0. Where cells are few, each side counts in several pieces.
    """
    found = []
    for axis, lines, others in ((0, grid.x, grid.y), (1, grid.y, grid.x)):
        pieces = max(1, -(-8 // (len(others) - 1)))
        cuts = np.interp(np.arange(pieces * (len(others) - 1) + 1) / pieces, np.arange(len(others)), others)
        n, m = len(lines), len(cuts) - 1
        mid = np.stack([np.repeat(lines, m), np.tile((cuts[:-1] + cuts[1:]) / 2, n)], 1)
        along = np.stack([np.zeros(n * m), np.tile(np.diff(cuts), n)], 1)
        across = np.tile([1.0, 0.0], (n * m, 1))
        k = np.repeat(np.arange(n), m)
        if axis:
            mid, along, across = mid[:, ::-1], along[:, ::-1], across[:, ::-1]
        found.append((mid, along, across, axis * 1000 + k, (k == 0).astype(int) - (k == n - 1)))
    return [np.concatenate(parts) for parts in zip(*found)]


def sampled(image, x, y):
    """Gray at points of an image (float32), bilinear, 0 beyond it; scipy takes four times as long."""
    height, width = image.shape
    column, row = (np.clip(v.astype(np.intp), 0, n - 2) for v, n in ((x, width), (y, height)))
    right, down, first = (x - column).astype(np.float32), (y - row).astype(np.float32), row * width + column
    a, b, c, d = (image.ravel()[k:].take(first, mode="clip") for k in (0, 1, width, width + 1))
    a, c = a + (b - a) * right, c + (d - c) * right
    return (a + (c - a) * down) * ((x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))


def profiles(image, grid, e, reach, fine=True):
    """Gray across each side (E, samples), the median along the side's middle part, and the samples' places in cells."""
    t, step = np.linspace(-0.36, 0.36, 9 if fine else 3), STEP if fine else 2 * STEP
    count = int(reach / step + 0.5)
    s = np.arange(-count, count + 1) * step
    mid, along, across = (v[:, None] for v in e[:3])
    on = mid + along * t[:, None]
    start, end = grid(on + across * s[0]), grid(on + across * s[-1])  # straight between: under 0.001 cells off
    share = np.linspace(0, 1, len(s))
    x, y = (start[..., k, None] + (end - start)[..., k, None] * share for k in (0, 1))
    found = sampled(image, x, y)
    found.partition(len(t) // 2, axis=1)
    return found[:, len(t) // 2], s


def responses(p, s, end):
    """How much each sample of profiles looks like a gap (at the border: like its end), relative to the light beside."""
    step, total, i = s[1] - s[0], np.pad(np.cumsum(p, 1), ((0, 0), (1, 0))), np.arange(p.shape[1])

    def mean(a, b):
        """Of the samples from a to b cells beside each."""
        low, high = (np.clip(i + round(v / step), 0, p.shape[1]) for v in (a, b + step))
        return (total[:, high] - total[:, low]) / np.maximum(high - low, 1)

    best, end = np.full(p.shape, -1.0), end[:, None]
    for k in WIDER:
        left, right = mean(-FLANK[1] * k, -FLANK[0] * k), mean(FLANK[0] * k, FLANK[1] * k)
        before, behind = mean(-FLANK[1] * k, -STEP), mean(STEP, FLANK[1] * k)
        found = np.where(end == 0, np.minimum(left, right) - mean(-GAP * k, GAP * k), end * (behind - before))
        best = np.maximum(best, found / np.maximum(np.maximum(left, right), DIM))
    return best


def measure(image, grid, e, window, fine=True):
    """Shift of each side against the grid, in cells, and how clear it is (0: not to be seen)."""
    p, s = profiles(image, grid, e, window + WIDER[-1] * FLANK[1], fine)
    keep, half = np.abs(s) <= window + 1e-9, len(s) // 2
    r, s = responses(p, s, e[4])[:, keep], s[keep]
    r = np.clip(r, 0, None) * np.exp(-0.5 * (s / window) ** 2)
    w = np.where(np.abs(np.arange(len(s)) - r.argmax(1)[:, None]) <= (3 if fine else 2), r, 0) ** 2
    lit = np.maximum(p[:, :half].mean(1), p[:, half:].mean(1))  # at a dead cell no line is seen
    return (w * s).sum(1) / np.maximum(w.sum(1), 1e-9), np.clip(r.max(1) / 0.3, 0, 1) * np.clip(lit / DIM - 0.5, 0, 1)


def spread(count):
    """Where a wider gap in the module's middle, as half-cut modules have, moves the lines: -0.5, 0 or 0.5 of it."""
    return 0.5 * np.sign(np.arange(count + 1) - count / 2) * (count >= 12 and count % 2 == 0)


def halves(grid, e):
    """The same for each side, in a column for the vertical and one for the horizontal lines: float (E, 2)."""
    level = e[3] >= 1000
    by_line = np.where(level, spread(grid.rows)[e[3] % 1000 * level], spread(grid.columns)[e[3] * ~level])
    return np.stack([by_line * ~level, by_line * level], 1) * -1.0


def one_line(grid, e):
    """The same for each inner line's own place: float (E, columns + rows - 2)."""
    lines = np.append(np.arange(1, grid.columns), 1000 + np.arange(1, grid.rows))
    return -(e[3][:, None] == lines).astype(float)


def fit(image, grid, windows, fine=True, bend=None):
    """Fit a grid to the sides found within each of `windows` (in cells) in turn.

    fine: the last fit, with lens and the inner lines' own places, as strings may stand wider apart than cells. bend:
    the lens where it is known, else it is fitted. How far within the outermost lines the light ends follows, for each
    border, from the even distances of the inner lines. Robust Gauss-Newton steps (Cauchy weights).
    """
    grid, ends = grid.copy(bend=bend), np.full(4, RIM)
    moves = np.zeros(grid.columns + grid.rows - 2)  # of the inner lines, from even distances
    few = min(grid.columns, grid.rows) < 4
    for turn, window in enumerate(windows):
        e = sides(grid)
        shift, clear = measure(image, grid, e, window, fine)
        start, along = grid(e[0]), grid(e[0] + e[2] * 0.01) - grid(e[0])
        length = np.linalg.norm(along, axis=1, keepdims=True)
        size, normal, unit = length[:, 0] * 100, along / length, np.sqrt(grid.cell_size().prod())
        seen, weight = start + normal * (shift * size)[:, None], np.sqrt(clear) * np.where(e[4] == 0, 1, 0.7)
        curved = fine and turn > 0 and len(weight) > 60 and bend is None
        border = np.select([e[4] == 0, e[4] == 1], [-1, 0], 1) + 2 * (e[3] >= 1000) * (e[4] != 0)
        at_border = np.eye(5)[border][:, :4] * (e[4] * unit / size)[:, None]
        apart, own = halves(grid, e), one_line(grid, e)
        stiff = 100 if few else 0.5

        aside = np.hstack([at_border, apart, own])

        def moved(v, grid=grid, unit=unit, curved=curved):
            return grid.copy(grid.quad + v[:8].reshape(4, 2) * unit, v[8] if curved else grid.bend)

        def miss(v, moved=moved, e=e, seen=seen, normal=normal, size=size, aside=aside):
            return ((moved(v)(e[0]) - seen) * normal).sum(1) / size - aside @ v[9:]

        # what is known beforehand: little moves, lenses bend little, borders are alike
        known = np.diag([0.003] * 8 + [NORMAL_BEND] + [0.0] * 4 + [0.5] * 2 + [EVEN] * len(moves))
        alike = np.zeros((5, len(known)))
        alike[0, 9:13], alike[1:, 9:13] = stiff / 4, ALIKE * (np.eye(4) - 0.25)
        known = np.concatenate([known, alike])
        wanted = np.concatenate([np.zeros(15), -EVEN * moves, [stiff * RIM], np.zeros(4)])
        v = np.concatenate([np.zeros(8), [grid.bend], ends, np.zeros(2 + len(moves))])
        scale = max(0.01, window / 6)
        own_places = [fine and turn > 0] * len(moves)
        active = np.array([True] * 8 + [curved] + [True] * 4 + [*apart.any(0), *own_places])
        d = miss(v)
        nudged = [miss(v + 1e-5 * one) if on else d for one, on in zip(np.eye(9, len(v)), active)]
        jacobian = np.hstack([(np.array(nudged).T - d[:, None]) / 1e-5, -aside])  # so nearly linear that one will do
        for _ in range(8 if fine else 3):
            d = miss(v)
            w = weight**2 / (1 + (d / scale) ** 2)
            a = (jacobian.T * w) @ jacobian + known.T @ known
            b = (jacobian.T * w) @ d + known.T @ (known @ v - wanted)
            step = np.zeros(len(v))
            step[active] = np.linalg.solve(a[np.ix_(active, active)] + 1e-12 * np.eye(active.sum()), b[active])
            v = v - step
            if np.abs(step).max() < (1e-4 if fine else 1e-3):
                break
        grid, ends = moved(v), v[9:13]
        moves = moves + v[15:]
        x, y = np.zeros(grid.columns + 1), np.zeros(grid.rows + 1)
        x[1:-1], y[1:-1] = np.split(v[15:], [grid.columns - 1])
        grid = grid.copy(x=grid.x + v[13] * spread(grid.columns) + x, y=grid.y + v[14] * spread(grid.rows) + y)
    return grid


def score(image, grid, fine=True):
    """Up to 1: are the inner lines dark, and darker than busbars, all four borders too, and cells square (or half)?"""
    e = sides(grid)
    p, s = profiles(image, grid, e, 0.52 + WIDER[-1] * FLANK[1], fine)
    r, end, cell = responses(p, s, e[4]), e[4] != 0, np.abs(s) < 0.52
    on, off = r[:, np.abs(s) <= 0.015].max(1), r[:, cell & (np.abs(s) > 0.08)].max(1)
    before, behind = p[:, s < -0.05].mean(1), p[:, s > 0.05].mean(1)
    lit = np.select([e[4] == 0, e[4] == 1], [np.minimum(before, behind), behind], before)
    usual = max(np.median(p[:, cell].mean(1)), 1e-6)
    lit = np.clip(lit / usual / DIM - 0.3, 0, 1)  # at dead cells nothing is seen, for or against
    inner, darkest, share, doubled, halved = [1.0], [1.0], 1.0, 0.0, False
    if not end.all():
        share = lit[~end].mean()
        for axis in (False, True):
            those = ~end & ((e[3] >= 1000) == axis)
            if those.any():
                weight = lit[those] / (lit[those].sum() + 1e-6)
                inner.append((weight * np.clip(on[those] / 0.08, -0.5, 1)).sum())
                darkest.append((weight * (on > 0.8 * off)[those]).sum())
            odd_line = e[3] % 2 == 1
            depths = [lit[t] @ on[t] / (lit[t].sum() + 1e-6) for t in (those & odd_line, those & ~odd_line)]
            if max(e[3][those], default=0) % 1000 >= 4 and max(depths) > 0:  # every second line a busbar?
                doubled = max(doubled, 0.7 - min(depths) / max(depths))
            usual_one = lit[those] @ r[those] / (lit[those].sum() + 1e-6)  # a line inside all cells: a gap left out?
            at_line, at_half = (
                usual_one[cell & (a < np.abs(s)) & (np.abs(s) <= b)].max() for a, b in ((-1, 0.015), (0.44, 1))
            )
            elsewhere = usual_one[(np.abs(s) > 0.08) & (np.abs(s) < 0.42)].max()  # busbars stand there too
            halved = max(halved, at_half > max(0.85 * at_line, 1.5 * elsewhere))
    near = (np.abs(s) > 0.06) & (np.abs(s) < 0.14)
    upper, lower = p[:, near & (s < 0)].mean(1), p[:, near & (s > 0)].mean(1)
    beyond = np.where(e[4] == 1, upper / np.maximum(lower, 1e-6), lower / np.maximum(upper, 1e-6))
    on_end = np.clip(on / 0.3, 0, 1) * np.clip(2 - 2 * beyond, 0, 1)  # as bright behind a gap: the module goes on
    ends = []
    for k in np.unique(e[3][end]):
        those = end & (e[3] == k)
        weight = np.append(lit[those], 0.2 * those.sum())
        ends.append(np.average(np.append(on_end[those], 0.3), weights=weight))
    shape = abs(np.log2(np.divide(*np.maximum(grid.cell_size(), 1e-6))))
    odd = max(0, min(shape, abs(shape - 1)) - 0.15)
    lines = 0.35 * np.mean(inner[-2:]) + 0.25 * np.min(darkest)
    return float(
        lines + 0.1 * share + 0.15 * (np.mean(ends) + np.min(ends)) - 0.6 * odd - 0.5 * doubled - 0.25 * halved
    )


def neighbours(grid):
    """The grid moved by one line of cells in each of the eight directions: what it is most easily mistaken for."""
    for dx, dy in itertools.product((-1, 0, 1), repeat=2):
        if dx or dy:
            yield grid.copy(x=grid.x + dx, y=grid.y + dy)
