"""Tables and pages of results folders: build them again, with people's labels; join folders, compare them.

$ python report.py results/site7 --labels results/site7/labels.csv   # calls as people corrected them in review.html
$ python report.py results/a results/b --out results/all             # several folders as one
$ python report.py results/2026 --before results/2024                # what is new, what is gone

It needs no network: all that it shows lies in the record of a folder (doc/record.md).
"""

import argparse
import contextlib
import sys
from pathlib import Path

from elcells.files import InputError, command
from elcells.pages.comparison import write_comparison
from elcells.pages.derived import derive
from elcells.pages.report import write_report
from elcells.records.labels import take_labels
from elcells.records.merging import check_same, merge
from elcells.records.metadata import keep_metadata, metadata_of_record
from elcells.records.opening import changing, reading, writing
from elcells.records.runs import info_of_row
from elcells.records.summary import lines_about


def options():
    """The parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that `predict.py --out` filled")
    text = "take the results of all folders into this one, which is made where it is missing"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "labels that people gave in review.html, taken into the record; may be given several times"
    parser.add_argument("--labels", action="append", default=[], metavar="CSV", help=text)
    text = "what else is known of the images (filename;serial;string;…), taken into the record"
    parser.add_argument("--metadata", metavar="CSV", help=text)
    text = "results folder of an earlier inspection of the same modules, to compare with (comparison.html)"
    parser.add_argument("--before", type=Path, metavar="DIR", help=text)
    text = "write the report once more as one file for mailing, report_DIR.html"
    parser.add_argument("--single-file", action="store_true", help=text)
    return parser


@contextlib.contextmanager
def opened(folders, out):
    """The context with the Record of the only folder, or with that of `out`, which takes in all folders' results."""
    if out is None:
        with changing(folders[0]) as record:
            yield record
        return
    with reading(folders[0]) as first:
        info = first.info
    for folder in folders:
        with reading(folder) as other:
            check_same(info, other)
    with writing(out, info_of_row(info)) as record:
        for folder in folders:
            merge(record, folder)
        yield record
        record.end()


def check_options(args):
    """Raise InputError for options that contradict each other."""
    if len(args.folders) > 1 and args.out is None:
        raise InputError(f"{len(args.folders)} results folders: give --out, the folder that takes in all of them")
    for folder in args.folders if args.out else ():
        if folder.resolve() == args.out.resolve():
            raise InputError(f"--out {args.out}: is one of the folders; give a folder of its own")
    if args.before and args.before.resolve() == (args.out or args.folders[0]).resolve():
        raise InputError(f"--before {args.before}: is the folder itself; give that of an earlier inspection")


def lines_about_older(args, mailed, compared):
    """Lines about pages that an earlier call wrote and this one leaves as they are; mailed, compared: their paths."""
    pages = (("--single-file", args.single_file, mailed), ("--before", args.before, compared))
    older = [(path, option) for option, given, path in pages if not given and path.exists()]
    return [f"{path} is of an earlier call; {option} writes it anew." for path, option in older]


@command
def main(argv=None):
    """Command line of this file; returns the exit code: 0, 2 for bad input, 3 when some labels belong to no cell."""
    args = options().parse_args(argv)
    check_options(args)
    lines = []
    fits = True
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(reading(args.before)) if args.before else None
        record = stack.enter_context(opened(args.folders, args.out))
        metadata, about_metadata = metadata_of_record(record, args.metadata) if args.metadata is not None else ({}, [])
        for path in args.labels:
            about, all_fit = take_labels(record, path)
            lines += about
            fits = fits and all_fit
        keep_metadata(record, metadata)
        lines += about_metadata
        derive(record)
        lines += lines_about(record)
        mailed = record.folder / f"report_{record.folder.resolve().name}.html"
        if args.single_file:
            write_report(record, single_file=mailed)
            lines.append(f"{mailed}: the report in one file.")
        if before:
            lines += write_comparison(record, before)
        lines += lines_about_older(args, mailed, record.folder / "comparison.html")
    print("\n".join(lines), file=sys.stderr)
    return 0 if fits else 3


if __name__ == "__main__":
    raise SystemExit(main())
