"""The image of a module with its grid, each cell in the colour of its verdict."""

from PIL import Image, ImageDraw, ImageFont

from elcells.files import atomic_path

NO_DEFECT = "no defect"
TOO_DARK_VERDICT = "nearly black"
VERDICT_COLOURS = {  # of Okabe and Ito: people with any kind of colour vision can tell them apart
    NO_DEFECT: "#bbbbbb",
    "crack": "#e69f00",
    "inactive": "#56b4e9",
    "crack and inactive": "#cc79a7",
    TOO_DARK_VERDICT: "#009e73",
}
FILL = "38"  # opacity of a defective cell's colour, hexadecimal
TEXT_FROM = 28  # pixels of a cell: smaller ones have no room for probabilities
LEGEND_HEIGHT = 34  # pixels


def verdict(calls, classes):
    """The name in VERDICT_COLOURS for a cell's calls, 0 or 1 for each class; "crack" for classes other than ours."""
    text = " and ".join(name for name, call in zip(classes, calls) if call) or NO_DEFECT
    return text if text in VERDICT_COLOURS else "crack"


def draw_module(module, path, verdicts, probabilities=None, judged=True):
    """Save a CutModule's image with its grid, each cell in the colour of its verdict, and probabilities at defects.

    verdicts: a name of VERDICT_COLOURS for each cell. probabilities: text for each cell. judged: False where no network
    has judged the cells, so that the legend does not claim that they have no defect.
    """
    image = module.small.convert("RGB")
    draw_cells(image, module.grid, verdicts, probabilities)
    page = Image.new("RGB", (image.width, image.height + LEGEND_HEIGHT), "white")
    page.paste(image)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(14)
    shown = verdicts if judged else [name for name in verdicts if name != NO_DEFECT]
    draw_legend(draw, font, image.height, shown)
    if not module.sure:
        text = f"NOT SURE: {module.why}"
        draw.rectangle((0, 0, draw.textlength(text, font) + 16, 24), "black")
        draw.text((8, 12), text, "white", font, "lm")
    with atomic_path(path) as temporary:
        page.save(temporary, "PNG", compress_level=1)


def draw_cells(image, grid, verdicts, probabilities):
    """Draw the outline of each cell into an RGB image, which may be smaller than the grid's."""
    factor = image.width / (2 * grid.centre[0] + 1)
    corners = (grid.cells().reshape(-1, 4, 2) + 0.5) * factor - 0.5
    cell = max(4.0, float(grid.cell_size().min() * factor))
    draw = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(max(9, min(20, cell / 4)))
    thin = max(1, round(cell / 80))
    thick = max(1, round(cell / 22))
    places = sorted(range(len(corners)), key=lambda place: verdicts[place] != NO_DEFECT)  # defects on top
    for place in places:
        colour = VERDICT_COLOURS[verdicts[place]]
        if verdicts[place] == NO_DEFECT:
            draw.polygon([tuple(corner) for corner in corners[place]], outline=colour, width=thin)
            continue
        middle = corners[place].mean(0)
        within = middle + (corners[place] - middle) * 0.94
        draw.polygon([tuple(corner) for corner in within], fill=colour + FILL, outline=colour, width=thick)
        if probabilities is not None and cell >= TEXT_FROM:
            draw.text(tuple(middle), probabilities[place], "white", font, "mm", stroke_width=2, stroke_fill="black")


def draw_legend(draw, font, top, verdicts):
    """Draw how many cells have each verdict, below the row `top`."""
    x = 8
    for name, colour in VERDICT_COLOURS.items():
        if name in verdicts:
            text = f"{name}: {verdicts.count(name)}"
            draw.rectangle((x, top + 10, x + 14, top + 24), colour, "black")
            draw.text((x + 20, top + 17), text, "black", font, "lm")
            x += 34 + draw.textlength(text, font)
