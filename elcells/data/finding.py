"""Where images are: folders, globs and lists of names."""

import codecs
import fnmatch
import glob
import os
import re
import stat
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from elcells.data.outputs import is_output
from elcells.data.tiff import is_only_page, pages_of
from elcells.files import ANY_NAME, InputError, counted

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm"}
# Files that lie beside images and are none: nobody needs to hear that they are not read.
COMPANIONS = set(
    ".csv .tsv .txt .json .jsonl .html .htm .css .js .md .rst .xml .yaml .yml .toml .ini .cfg .xlsx .xls .ods .doc "
    ".docx .sqlite .sqlite-wal .sqlite-shm .sqlite-journal .db .onnx .ckp .log .lock .py .pyc .ipynb .sh .bat".split()
)
# Folders and files of file servers and systems, in lower case; so are all names that begin with a dot.
SYSTEM_NAMES = {"@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "~snapshot"}
SYSTEM_NAMES |= {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx"}
SYSTEM_NAMES |= {"network trash folder", "temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini"}
NO_FILE = "pipe, socket or device"
MOST_TYPES = 8  # that are named


def as_stored(path):
    """The Path as the file system has it, which may use the other Unicode form (Macs write ü as u and two dots)."""
    if str(path).isascii() or os.path.exists(path) or path == path.parent:
        return path
    folder = as_stored(path.parent)
    for form in ("NFC", "NFD"):
        other = folder / unicodedata.normalize(form, path.name)
        if os.path.exists(other):
            return other
    return path


def file_of(path):
    """The file (Path) that holds an image, and the number of its page: FILE#page=2 is page 1 of FILE, counted from 0.

    The number is None where the name has none; a file whose own name ends like that is taken as it is.
    """
    file = as_stored(Path(path))
    page = re.fullmatch(r"(.*)#page=(\d+)", str(path), re.DOTALL)
    if page is None or os.path.exists(file):
        return file, None
    return as_stored(Path(page[1])), int(page[2]) - 1


def is_system_name(name):
    """True for a folder or file that a system or a file server keeps for itself, such as @eaDir with its thumbnails."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def identity(file):
    """What all paths of one file have in common: links, ./ and, where the file system takes it, another case."""
    real = os.path.realpath(file)
    try:
        status = os.stat(real)
    except OSError:  # a link that leads nowhere
        return real
    if status.st_nlink > 1:  # the file has several names
        return status.st_dev, status.st_ino
    return status.st_dev, status.st_ino, unicodedata.normalize("NFC", real).casefold()


@dataclass
class Found:
    """What find_images found.

    paths: str of each image, as open_image takes it; the first of an image that has several.
    other_names: paths that are other names of such files (links).
    not_read: {path: type} of files of types that are not read.
    unreadable: (absolute path, text for the user) of each folder that can't be read, for each time that it was tried.
    outputs: real paths of files and folders that a run of ours wrote.
    """

    paths: list = field(default_factory=list)
    other_names: set = field(default_factory=set)
    not_read: dict = field(default_factory=dict)
    unreadable: list = field(default_factory=list)
    outputs: set = field(default_factory=set)
    seen: dict = field(default_factory=dict)  # identity of an image -> its absolute path

    def add_file(self, path):
        """Add the images of a file, each page of a TIFF, unless they are there; one of ours is left out."""
        file, number = file_of(path)
        if self.leaves_out(file):
            return
        if number is not None and is_only_page(file, number):
            path = str(file)
        absolute = os.path.abspath(path)
        file = identity(file)
        for page in pages_of(path):
            key = file, file_of(page)[1]
            if key not in self.seen:
                self.seen[key] = absolute
                self.paths.append(page)
            elif self.seen[key] != absolute:
                self.other_names.add(absolute)

    def leaves_out(self, path):
        """Whether a file or folder was written by an earlier run, which is noted."""
        real = os.path.realpath(path)
        if not is_output(real):
            return False
        self.outputs.add(real)
        return True

    def add_match(self, path):
        """Add a file that was met in a folder or matches a glob; one that is no image is counted."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in SUFFIXES and may_be_file(path):
            self.add_file(path)
        elif suffix in SUFFIXES:
            self.not_read[os.path.abspath(path)] = NO_FILE
        elif suffix not in COMPANIONS:
            self.not_read[os.path.abspath(path)] = suffix or "without a suffix"

    def add_folder(self, folder):
        """Add the images below a folder, sorted folder by folder; links are followed, but no folder twice."""
        for root, files in self.walk(folder):
            for name in files:
                self.add_match(os.path.join(root, name))

    def walk(self, folder):
        """Yield (folder, sorted names of its files) of a folder and all below it, but for those of systems."""
        entered = set()
        for root, folders, files in os.walk(folder, onerror=self.add_unreadable, followlinks=True):
            real = os.path.realpath(root)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not is_system_name(name))
            folders[:] = [name for name in folders if not self.leaves_out(os.path.join(root, name))]
            yield root, sorted(name for name in files if not is_system_name(name))

    def add_unreadable(self, error):
        """Note the folder of an OSError."""
        self.unreadable.append((os.path.abspath(error.filename), f"{error.filename} ({error.strerror})"))

    def matches(self, pattern):
        """Files and folders (list of str) that a glob matches, sorted part by part.

        A part that is the name of something is no pattern: line[1]/*.png are images of the folder line[1].
        """
        pattern = Path(pattern)
        parts = list(pattern.parts[bool(pattern.anchor) :])
        if parts[-1] == "**":  # a folder stands for all below it anyway
            parts.pop()
        places = [pattern.anchor or "."]
        for part in parts:
            places = [path for place in places for path in self.matches_in(place, part)]
        return places

    def matches_in(self, folder, part):
        """Paths in a folder that one part of a glob matches."""
        if part == "**":
            return [root for root, _ in self.walk(folder)]
        stored = as_stored(Path(folder, part))
        if os.path.lexists(stored):
            return [str(stored)]
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.add_unreadable(error)
            return []
        names = sorted(name for name in fnmatch.filter(names, part) if not is_system_name(name))
        return [str(Path(folder, name)) for name in names]

    def lines(self):
        """What the user should know about files and folders that were left out, a list of sentences."""
        lines = []
        if self.not_read:
            types = Counter(self.not_read.values())
            names = [f"{types[name]} {name}" for name in sorted(types)]
            if len(names) > MOST_TYPES:
                names[MOST_TYPES:] = ["…"]
            files = counted(len(self.not_read), "file of a type that is", "files of types that are")
            lines.append(f"{files} not read: {', '.join(names)}.")
        if self.unreadable:
            folders = dict(self.unreadable)
            colon = ", such as" if len(folders) > 1 else ":"
            lines.append(f"{counted(len(folders), 'folder')} can't be read{colon} {next(iter(folders.values()))}.")
        if self.outputs:
            outputs = counted(len(self.outputs), "output of an earlier run is", "outputs of earlier runs are")
            lines.append(f"{outputs} left out, such as {min(self.outputs)}.")
        if self.other_names:
            paths = counted(len(self.other_names), "path is another name", "paths are other names")
            lines.append(f"{paths} (links) of images that are there already; each image counts once.")
        return lines


def may_be_file(path):
    """False for a pipe, socket, device or folder, which nobody can read as an image; True for what can't be told."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # reading it will tell the reason
        return True


def find_images(inputs):
    """Find the images of folders (searched recursively, by suffix), globs, files, and "-" (a list on stdin).

    Each image is found once, a folder's in order of name; each page of a TIFF counts as an image.
    Returns a Found. Raises InputError for an input that leads nowhere or is an output, and for a list that has lines
    that lead nowhere; outputs in lists, folders and globs are left out.
    """
    found = Found()
    for name in inputs:
        if name == "-":
            add_list(found, sys.stdin.buffer.read())
        elif is_output(os.path.realpath(file_of(name)[0])):
            raise InputError(f"{name}: was written by an earlier run and is no input; give the images it was made from")
        else:
            add_input(found, name)
    return found


def add_input(found, name):
    """Add to a Found what one input, or line of a list, stands for; raises InputError where it leads nowhere."""
    if not name:  # an empty variable of a shell
        raise InputError("'': is an empty name; give an image file, or a folder of them")
    if not os.path.exists(name) and os.path.exists(stored := as_stored(Path(name))):
        name = str(stored)
    file, _ = file_of(name)
    if os.path.isdir(name):
        found.add_folder(name)
    elif os.path.exists(file):
        if not may_be_file(file):
            raise InputError(f"{name}: is a {NO_FILE}; give an image file, or a folder of them")
        found.add_file(name)
    else:
        unreadable = len(found.unreadable)
        matches = found.matches(name) if glob.has_magic(name) else []
        if not matches and len(found.unreadable) == unreadable:
            raise InputError(f"{name}: {why_not(file)}")
        for path in matches:
            if os.path.isdir(path):
                found.add_folder(path)
            else:
                found.add_match(path)


def why_not(path):
    """Why a path leads nowhere, in words."""
    try:
        os.stat(path)
    except PermissionError as error:
        return f"can't be read ({error.strerror})"
    except (OSError, ValueError):  # a name that no file can have
        pass
    return "no such file or folder, and no image matches it"


def add_list(found, raw):
    """Add to a Found what the lines of a list (bytes) stand for; raises InputError for lines that lead nowhere."""
    wrong = []
    for number, line in enumerate(lines_of(raw), 1):
        try:
            if line.strip():
                add_input(found, without_quotes(line))
        except InputError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        more = f" (and {counted(len(wrong) - 1, 'more line')} that can't be taken)" if len(wrong) > 1 else ""
        raise InputError(f"list on stdin, {wrong[0]}{more}; correct the list")


def lines_of(raw):
    """Lines of a list, bytes in UTF-8 or UTF-16, which end with a newline or a null byte (`find -print0`)."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")
    elif raw[1:2] == b"\0" and raw[3:4] in (b"\0", b""):  # not a name of one character such as "."
        text = raw.decode("utf-16-le", "replace")
    else:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", ANY_NAME)
    if "\0" in text:  # so that names can contain newlines
        return text.split("\0")
    return [line.removesuffix("\r") for line in text.split("\n")]


def without_quotes(line):
    """The name that a line of a list means: the line, unless nothing is called so, without spaces and quotes around."""
    name = line.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    return line if os.path.lexists(line) else name
