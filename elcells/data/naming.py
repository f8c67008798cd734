"""Which images the rows of a user's table mean."""

import os
import re
from collections import defaultdict
from pathlib import Path

from elcells.data.finding import file_of
from elcells.files import InputError

WRONG_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # how our tables write a byte that is not UTF-8


def file_key(name):
    """What tells an image from others: the real path of its file, and its page."""
    file, page = file_of(name)
    return os.path.realpath(file), page


def key_of_record(name):
    """The same of an image whose path is real already: its links are not followed."""
    file, page = file_of(name)
    return str(file), page


class Names:
    """Images by the names that a table may give them.

    path: of the table. names: of the images, as find_images gives them; real: their paths are real ones already.
    folders: that file names may be relative to, after the table's own and before the current one.
    """

    def __init__(self, path, names, *folders, real=False):
        self.path = path
        self.folders = (Path(path).parent, *folders, ".")
        self.by_key = defaultdict(list)
        self.by_last_part = defaultdict(list)
        for name in names:
            self.by_key[key_of_record(name) if real else file_key(name)].append(name)
            self.by_last_part[Path(name).name].append(name)

    def meant(self, line, filename):
        """The image that the file name in a line means, a list of its names; empty where there is none.

        It is the one that the name leads to from the first of the folders from which it leads to one; else the only one
        whose path ends like that. Raises InputError where several do.
        """
        filename = WRONG_BYTE.sub(lambda match: chr(int(match[1], 16)), filename)
        if "\0" in filename:
            return []
        for folder in self.folders:
            path = os.path.join(folder, filename)
            for key in (file_key(path), key_of_record(os.path.abspath(path))):  # a link may stand where an image was
                if found := self.by_key.get(key):
                    return found
        tail = [part for part in Path(filename.replace("\\", "/")).parts if part != ".."]
        candidates = self.by_last_part.get(tail[-1], []) if tail else []
        keys = {file_key(name) for name in candidates if list(Path(name).parts[-len(tail) :]) == tail}
        if len(keys) > 1:
            one, other, *_ = sorted(self.by_key[key][0] for key in keys)
            raise InputError(f"{self.path}, line {line}: {filename} may be {one} or {other}; give its whole path")
        return self.by_key[keys.pop()] if keys else []
