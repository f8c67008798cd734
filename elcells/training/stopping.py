"""Ctrl-C and SIGTERM stop a training after a step."""

import contextlib
import signal
import sys
import threading

from elcells.distributed import rank


@contextlib.contextmanager
def stopped_by_signals(trainer):
    """The context in which Ctrl-C and SIGTERM stop a Trainer after the step under way; a second one ends at once."""
    previous = {}

    def ask_to_stop(signum, frame):
        if rank() == 0:
            print("\nstopping after this step ...", file=sys.stderr)
        trainer.stop = True
        signal.signal(signum, previous[signum])

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            previous[signum] = signal.signal(signum, ask_to_stop)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
