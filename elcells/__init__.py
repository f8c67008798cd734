"""The library under the scripts: modules of one subject each, which import none of the scripts."""

__version__ = "1.0"
