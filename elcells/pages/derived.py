"""Everything that is derived from a record."""

from elcells.pages.report import write_report
from elcells.pages.review import write_review
from elcells.records.exports import write_tables


def derive(record):
    """Write a record's tables, report and review page into its folder."""
    write_tables(record)
    write_review(record)
    write_report(record)  # it has a link to the other
