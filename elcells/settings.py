"""Settings as frozen dataclasses: each field has its type, default, range and help line in one place.

Command-line options, their range checks, what a checkpoint stores, what a resumed run compares and the tables in the
documents follow from the fields.
"""

import argparse
import dataclasses
import math

from elcells.files import InputError

LIMITS = {  # of a range: its word, and whether a value is beyond it
    "least": ("at least", lambda value, limit: value < limit),
    "above": ("above", lambda value, limit: value <= limit),
    "most": ("at most", lambda value, limit: value > limit),
    "below": ("below", lambda value, limit: value >= limit),
}


def setting(default, text, *, kind=None, group="", fixed=True, choices=None, metavar="N", nargs=None, **limits):
    """A field of a settings dataclass.

    text: its help line. kind: function from the option's text to a value (the default's type). group: of the command
    line's help. fixed: whether a resumed run must keep it. choices: all that it may be. metavar, nargs: as argparse has
    them. limits: least, above, most, below, the ends of its range.
    """
    metadata = {"text": text, "kind": kind or type(default), "group": group, "fixed": fixed, "choices": choices}
    metadata |= {"metavar": metavar, "nargs": nargs, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


def complaint(field, value):
    """What is wrong with a field's value, such as "must be at least 1"; "" where nothing is."""
    limits = field.metadata.get("limits")
    if value is None or not limits:
        return ""
    is_beyond = any(LIMITS[name][1](value, limit) for name, limit in limits.items())
    if math.isfinite(value) and not is_beyond:
        return ""
    return "must be " + " and ".join(f"{LIMITS[name][0]} {limit:g}" for name, limit in limits.items())


def check(settings):
    """Raise InputError, naming the field, for a value that it may not have."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise InputError(f"{field.name} {value!r}: expected {' or '.join(choices)}")
        if problem := complaint(field, value):
            raise InputError(f"{field.name} {value:g}: {problem}")


def option_name(field):
    """A field's command-line option: batch_size is --batch-size."""
    return "--" + field.name.replace("_", "-")


def add_option(group, field, text):
    """Add a field's option to an argparse group; a bool becomes --name and --no-name. Options that are not given are
    None."""
    metadata = field.metadata
    if metadata["kind"] is bool:
        group.add_argument(option_name(field), action=argparse.BooleanOptionalAction, help=text)
    elif metadata["choices"]:
        group.add_argument(option_name(field), choices=metadata["choices"], help=text)
    else:
        how = {"type": metadata["kind"], "metavar": metadata["metavar"], "nargs": metadata["nargs"]}
        group.add_argument(option_name(field), help=text, **how)


def given_options(args, kind):
    """The given options of a dataclass, a dict. Raises InputError, naming the option, for one out of its range."""
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(args, field.name)
        if problem := complaint(field, value):
            raise InputError(f"{option_name(field)} {value:g}: {problem}")
        if value is not None:
            values[field.name] = value
    return values
