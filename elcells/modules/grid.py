"""The grid of a module's cells in its image: perspective, a radial lens, and the position of each line."""

import copy

import numpy as np


class Grid:
    """Maps grid coordinates (x from 0 to columns, y from 0 to rows) to image pixels.

    Perspective maps the module's rectangle to a quadrilateral, which the lens then distorts radially.

    quad: (4, 2) corners x, y in pixels, clockwise from the upper left, before distortion.
    shape: (height, width) of the image in pixels.
    bend: relative displacement at the image's corners (below 0: barrel).
    The attributes x and y hold the grid coordinates of the vertical and horizontal lines, at first 0, 1, 2, …
    """

    def __init__(self, quad, columns, rows, shape, bend=0.0):
        self.quad = np.asarray(quad, float)
        self.columns = columns
        self.rows = rows
        self.bend = bend
        self.x = np.arange(columns + 1.0)
        self.y = np.arange(rows + 1.0)
        self.centre = (np.array(shape[::-1]) - 1) / 2
        self.radius = np.hypot(*shape) / 2

    def changed(self, **attributes):
        """A copy of the grid with other values for the named attributes."""
        new = copy.copy(self)
        vars(new).update(attributes)
        return new

    def scaled(self, factor):
        """The grid in an image of `factor` times as many pixels along each side."""
        quad = (self.quad + 0.5) * factor - 0.5
        centre = (self.centre + 0.5) * factor - 0.5
        return self.changed(quad=quad, centre=centre, radius=self.radius * factor)

    def to_pixels(self, points):
        """Image pixels (..., 2) of points (..., 2) in grid coordinates."""
        u = points[..., :1] / self.columns
        v = points[..., 1:] / self.rows
        a, b, c, d = self.quad
        p, r = b - c
        q, s = d - c
        e, f = a - b + c - d
        g = h = 0.0
        determinant = p * s - q * r  # solved by hand, since this is called thousands of times
        if abs(determinant) > 1e-12:
            g = (e * s - q * f) / determinant
            h = (p * f - e * r) / determinant
        flat = (a + u * (b - a + g * b) + v * (d - a + h * d)) / (1 + g * u + h * v)
        if not self.bend:
            return flat
        flat -= self.centre
        return self.centre + flat * (1 + self.bend / self.radius**2 * (flat**2).sum(-1, keepdims=True))

    def nodes(self):
        """Corners of the cells, float (rows + 1, columns + 1, 2), x and y in pixels."""
        return self.to_pixels(np.stack(np.meshgrid(self.x, self.y), -1))

    def cell_size(self):
        """Mean width and height of a cell in pixels, float (2,)."""
        nodes = self.nodes()
        width = np.linalg.norm(np.diff(nodes, axis=1), axis=-1).mean()
        height = np.linalg.norm(np.diff(nodes, axis=0), axis=-1).mean()
        return np.array([width, height])

    def cell_side(self):
        """Side in pixels of a square as large as a mean cell."""
        return np.sqrt(self.cell_size().prod())

    def corners(self):
        """The module's corners in the image, float (4, 2), clockwise from the upper left."""
        left, right = self.x[[0, -1]]
        top, bottom = self.y[[0, -1]]
        return self.to_pixels(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))

    def cells(self):
        """Corners of every cell, float (rows, columns, 4, 2), clockwise from the upper left."""
        nodes = self.nodes()
        return np.stack([nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, 1:], nodes[1:, :-1]], 2)
