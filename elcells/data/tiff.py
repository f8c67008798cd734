"""TIFF files: their pages, and the pixels of a page."""

from pathlib import Path

from PIL import Image


def pages_of(path):
    """Names of a file's images for open_image: [path], or FILE#page=1 ... of a TIFF of several pages.

    Pages of another size than the first (previews) are skipped. A file that can't be read counts as one image.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return [path]
    sizes = []
    try:
        with Image.open(path) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                sizes.append(image.size)
    except Exception:
        return [path]
    pages = [f"{path}#page={number}" for number, size in enumerate(sizes, 1) if size == sizes[0]]
    return pages if len(pages) > 1 else [path]
