"""The image of a module with its grid, each cell in the colour of its verdict."""

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


def draw_module(module, path, verdicts, probabilities=None):
    """Save a module's image with its grid, each cell in the colour of its verdict, and the probabilities at defects.

    verdicts: a name of COLOURS for each cell. probabilities: text for each cell.
    """
    small, grid = module["small"], module["grid"]
    factor = small.width / (2 * grid.centre[0] + 1)
    image = small.convert("RGB")
    corners = (grid.cells().reshape(-1, 4, 2) + 0.5) * factor - 0.5
    cell = max(4.0, float(grid.cell_size().min() * factor))
    draw, font = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(max(9, min(20, cell / 4)))
    order = sorted(range(len(corners)), key=lambda k: verdicts[k] != "no defect")  # defects on top
    for k in order:
        marked, colour, middle = verdicts[k] != "no defect", COLOURS[verdicts[k]], corners[k].mean(0)
        draw.polygon(
            [tuple(p) for p in middle + (corners[k] - middle) * (0.94 if marked else 1)],
            fill=colour + "38" if marked else None,
            outline=colour,
            width=max(1, round(cell / (22 if marked else 80))),
        )
        if marked and probabilities is not None and cell >= 28:
            draw.text(tuple(middle), probabilities[k], "white", font, "mm", stroke_width=2, stroke_fill="black")
    bar = Image.new("RGB", (image.width, image.height + 34), "white")
    bar.paste(image)
    legend, x, font = ImageDraw.Draw(bar), 8, ImageFont.load_default(14)
    for name, colour in COLOURS.items():
        count = sum(v == name for v in verdicts)
        if count:
            legend.rectangle((x, image.height + 10, x + 14, image.height + 24), colour, "black")
            legend.text((x + 20, image.height + 17), f"{name}: {count}", "black", font, "lm")
            x += 34 + legend.textlength(f"{name}: {count}", font)
    if not module["sure"]:
        draw = ImageDraw.Draw(bar)
        text = f"NOT SURE: {module['why']}"
        draw.rectangle((0, 0, draw.textlength(text, font) + 16, 24), "black")
        draw.text((8, 12), text, "white", font, "lm")
    with atomic_path(path) as temporary:
        bar.save(temporary, "PNG", compress_level=1)
