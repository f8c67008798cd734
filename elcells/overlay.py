"""The picture of a module with its grid, each cell in the colour of its verdict."""

from PIL import Image, ImageDraw, ImageFont

from elcells.files import atomic_path

COLOURS = {  # Okabe and Ito: told apart by people with any kind of colour vision
    "no defect": "#bbbbbb",
    "crack": "#e69f00",
    "inactive": "#56b4e9",
    "crack and inactive": "#cc79a7",
    "nearly black": "#009e73",
}


def verdict(found, classes):
    """The name in COLOURS of a cell's 0/1 calls; other classes than ours are shown as a crack is."""
    names = [c for c, f in zip(classes, found) if f]
    return " and ".join(names) if " and ".join(names) in COLOURS else "crack" if names else "no defect"


def draw_module(module, path, verdicts=None, probabilities=None):
    """Save a module's picture with its grid, each cell in the colour of its verdict, and the probabilities at defects.

    verdicts: a name of COLOURS for each cell; None: the grid alone. probabilities: text for each cell.
    Returns the cells' corners in the drawn picture, float (N, 4, 2).
    """
    small, grid = module["small"], module["grid"]
    factor = small.width / (2 * grid.centre[0] + 1)
    picture = small.convert("RGB")
    corners = (grid.cells().reshape(-1, 4, 2) + 0.5) * factor - 0.5
    cell = max(4.0, float(grid.cell_size().min() * factor))
    draw, font = ImageDraw.Draw(picture, "RGBA"), ImageFont.load_default(max(9, min(20, cell / 4)))
    verdicts = verdicts if verdicts is not None else ["no defect"] * len(corners)
    order = sorted(range(len(corners)), key=lambda k: verdicts[k] != "no defect")  # defects on top
    for k in order:
        shape, colour = [tuple(p) for p in corners[k]], COLOURS[verdicts[k]]
        marked = verdicts[k] != "no defect"
        inner = corners[k].mean(0) + (corners[k] - corners[k].mean(0)) * (0.94 if marked else 1)
        draw.polygon(
            [tuple(p) for p in inner] if marked else shape,
            fill=colour + "38" if marked else None,
            outline=colour,
            width=max(1, round(cell / (22 if marked else 80))),
        )
        if marked and probabilities is not None and cell >= 28:
            draw.text(
                tuple(corners[k].mean(0)), probabilities[k], "white", font, "mm", stroke_width=2, stroke_fill="black"
            )
    bar = Image.new("RGB", (picture.width, picture.height + 34), "white")
    bar.paste(picture)
    legend, x, font = ImageDraw.Draw(bar), 8, ImageFont.load_default(14)
    for name, colour in COLOURS.items():
        count = sum(v == name for v in verdicts)
        if count:
            legend.rectangle((x, picture.height + 10, x + 14, picture.height + 24), colour, "black")
            legend.text((x + 20, picture.height + 17), f"{name}: {count}", "black", font, "lm")
            x += 34 + legend.textlength(f"{name}: {count}", font)
    if not module["sure"]:
        draw = ImageDraw.Draw(bar)
        text = f"NOT SURE: {module['why']}"
        draw.rectangle((0, 0, draw.textlength(text, font) + 16, 24), "black")
        draw.text((8, 12), text, "white", font, "lm")
    with atomic_path(path) as temporary:
        bar.save(temporary, "PNG")
    return corners
