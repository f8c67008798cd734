"""Runs of predict.py that die at a chosen step: within a process, by an exception, or as one that is killed."""

import contextlib
import os
import threading
from unittest import mock

import predict
from elcells.pages import derived
from elcells.records import record, work


class Steps:
    """Counts what a run changes on the disk: files put in place or removed, rows written, transactions.

    last: the step at which die() is called, and at all that follow; None for none.
    """

    def __init__(self, last=None, die=None):
        self.count = 0
        self.last = last
        self.die = die
        self.lock = threading.Lock()

    def before(self, function):
        """The function, each call of which is a step."""

        def counted(*arguments, **options):
            with self.lock:
                self.count += 1
                last = self.last is not None and self.count >= self.last
            if last:
                self.die()
            return function(*arguments, **options)

        return counted

    @contextlib.contextmanager
    def counted(self):
        """The context in which steps are counted."""
        of_record = [(record.Record, name) for name in ("insert", "update_image", "expect", "add", "end", "lens")]
        places = [(os, "replace"), (work, "remove_files"), (predict, "tidy"), (derived, "write_tables"), *of_record]
        with contextlib.ExitStack() as stack:
            for place, name in places:
                stack.enter_context(mock.patch.object(place, name, self.before(getattr(place, name))))
            yield self


def stop():
    raise KeyboardInterrupt


def run_and_die(arguments, kind, step=None, seconds=None):
    """Run predict.py with a list of arguments; this process is killed at a step, or after some seconds.

    kind: of the signal.
    """

    def kill():
        os.kill(os.getpid(), kind)

    if seconds is not None:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
    with Steps(step, kill).counted():
        predict.main(arguments)
