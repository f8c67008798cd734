"""Settings as frozen dataclasses: each field has its type, default, range and help line in one place.

Command-line options, their checks, what a checkpoint stores, what a resumed run compares and the tables in the
documents follow from the fields.
"""

import argparse
import dataclasses
import math
import typing

from elcells.files import InputError

LIMITS = {  # of a range: its word, and whether a value is beyond it
    "least": ("at least", lambda value, limit: value < limit),
    "above": ("above", lambda value, limit: value <= limit),
    "most": ("at most", lambda value, limit: value > limit),
    "below": ("below", lambda value, limit: value >= limit),
}


def setting(default, text, *, group="", fixed=True, choices=None, parse=None, metavar="N", nargs=None, **limits):
    """A field of a settings dataclass.

    text: its help line. group: of the command line's help. fixed: whether a resumed run must keep it. choices: all that
    it may be. parse: function from an option's text to the value, if it is not the field's type. metavar, nargs: as
    argparse has them. limits: least, above, most, below, the ends of its range.
    """
    metadata = {"text": text, "group": group, "fixed": fixed, "choices": choices, "parse": parse}
    return dataclasses.field(
        default=default, metadata=metadata | {"metavar": metavar, "nargs": nargs, "limits": limits}
    )


def type_of(field):
    """The type of a field's values: int for `int | None`."""
    return next((kind for kind in typing.get_args(field.type) if kind is not type(None)), field.type)


def complaint(field, value):
    """What is wrong with a field's value, such as "must be at least 1"; "" where nothing is."""
    if value is None:
        return "" if type(None) in typing.get_args(field.type) else "must be given"
    expected = type_of(field)
    if not isinstance(value, (int, float) if expected is float else expected):
        return f"must be of type {expected.__name__}"
    choices = field.metadata["choices"]
    if choices and value not in choices:
        return f"must be {' or '.join(choices)}"
    limits = field.metadata["limits"]
    if not limits or (math.isfinite(value) and not any(LIMITS[name][1](value, end) for name, end in limits.items())):
        return ""
    return "must be " + " and ".join(f"{LIMITS[name][0]} {end:g}" for name, end in limits.items())


def check(settings):
    """Raise InputError, naming the field, for a value that it may not have."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if problem := complaint(field, value):
            raise InputError(f"{field.name} {shown(value)}: {problem}")


def given_options(args, settings_class):
    """The options of a dataclass that were given, a dict. Raises InputError, naming the option, for a wrong value."""
    values = {}
    for field in dataclasses.fields(settings_class):
        value = getattr(args, field.name)
        if value is None:
            continue
        values[field.name] = tuple(value) if isinstance(value, list) else value
        if problem := complaint(field, values[field.name]):
            raise InputError(f"{option_name(field)} {shown(value)}: {problem}")
    return values


def resumed_settings(args, settings_class, path, stored, name):
    """The settings that a run stored under a name, with what the command line changes of them.

    path: what holds them, for messages. Raises InputError for an option that can't change.
    """
    names = {field.name for field in dataclasses.fields(settings_class)}
    try:
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in stored[name].items()}
        if values.keys() != names:
            raise KeyError(name)
        before = settings_class(**values)
    except (KeyError, TypeError, AttributeError, InputError):
        raise InputError(
            f"{path}: not a resumable checkpoint of this version; give a last.ckp of its `python train.py`"
        ) from None
    changes = given_options(args, settings_class)
    for field in dataclasses.fields(settings_class):
        value = getattr(before, field.name)
        may_change = not field.metadata["fixed"]
        if field.name == "epochs" and before.schedule == "steps":
            may_change = True  # more epochs do not change the completed ones
        if not may_change and changes.get(field.name, value) != value:
            raise InputError(
                f"{option_name(field)} can't change on --resume (it was {shown(value)}); leave it out, or train anew"
            )
    return dataclasses.replace(before, **changes)


def shown(value):
    """A setting's value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def option_name(field):
    """A field's command-line option: batch_size is --batch-size."""
    return "--" + field.name.replace("_", "-")


def add_option(group, field, defaults=None, choices=None):
    """Add a field's option to an argparse group; a bool becomes --name and --no-name. Not given, it is None.

    defaults: what the help says of the default (the field's). choices: all that it may be (the field's).
    """
    metadata = field.metadata
    if defaults is None and field.default is not None:
        defaults = shown(field.default)
    text = f"{metadata['text']} ({defaults})" if defaults else metadata["text"]
    how = {"help": text.replace("%", "%%")}
    choices = choices or metadata["choices"]
    if type_of(field) is bool:
        how["action"] = argparse.BooleanOptionalAction
    elif choices:
        how["choices"] = choices
    else:
        how |= {"type": metadata["parse"] or type_of(field), "metavar": metadata["metavar"], "nargs": metadata["nargs"]}
    group.add_argument(option_name(field), **how)
