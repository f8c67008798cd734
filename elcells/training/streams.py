"""Random numbers: every draw follows from (seed, epoch, step, stream) alone, whether a run was resumed or not."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are drawn for.

    Each has numbers of its own, but the order of an epoch's cells shares those of the augmentation in step 0.
    """

    AUGMENTATION = 0
    ORDER = 0
    DRAWN_DEFECTS = 1
    NOISE_LEVEL = 2
    NOISE = 3
    DROPOUT = 4
    LIGHT = 5
    RESOLUTION = 6
    HANDLING = 7
    MORE_CRACKS = 8
    BLUR = 9


def stream_seed(seed, stream, epoch, step=0, *process):
    """The seed (int below 2**63) of a stream in a step of an epoch; process: the rank, where each needs its own."""
    sequence = np.random.SeedSequence([seed, epoch, step, stream, *process])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def stream_generator(seed, stream, epoch, step=0):
    """A torch.Generator on the CPU for a stream in a step of an epoch."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, epoch, step))
