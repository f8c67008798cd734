"""A network as a function from images to what it sees in them, with further looks at what is in doubt."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import repeat
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from elcells.data.images import square_side
from elcells.evaluation.calibration import choose_thresholds
from elcells.inference.doubt import (
    FURTHER_TURNS,
    NEAR,
    NEAR_SMALL,
    TURNS,
    doubt,
    logits_of,
    mean_of_turns,
    turned,
    turned_back,
)
from elcells.inference.severity import has_dark_region
from elcells.inference.small import FEW

LOWER_IF_NOT_DARK = 2.0  # logits by which an inactive region is less probable where nothing is dark
UNLIKELY = 0.02  # probability up to which it is not lowered


class Look(NamedTuple):
    """What a network sees in a batch: probabilities (B, C), class maps (B, C, h, w) or None, and a function from an
    image's number to the probabilities (h, w) that a crack's line runs there, or None."""

    probabilities: np.ndarray
    maps: np.ndarray | None
    follow_lines: Callable | None


class Seen(NamedTuple):
    """What a network sees in one image: probabilities (C,), those of the first look alone (C,), a class map (C, h, w)
    or None, and a function that gives the probabilities (h, w) that a crack's line runs there, or None."""

    probabilities: np.ndarray
    first_look: np.ndarray
    map: np.ndarray | None
    follow_lines: Callable | None


@dataclass(frozen=True)
class Engine:
    """A network as a function: takes uint8 gray images (N, 1, S, S), returns float32 probabilities (N, C).

    Called, it looks at each image once, as any program does that runs the file. `look_at` and `judged` look at images
    near a threshold in up to four turns and lower the probability of an inactive region where nothing is dark, as
    predict.py does. Give small cells (`side_for`) as images of `small_size` pixels (`small.with_side`); they get no
    crack lines.

    look: function of a batch (B, 1, S, S) that gives a Look. classes: names, in the order of the probabilities.
    image_size: S in pixels. name: what runs the network. operating_points: {name: one threshold a class}.
    batch_size: images that the network gets at a time. has_lines: whether the network tells where cracks run.
    small_size: S for small cells, or None where they are shown as all others.
    batch_matters: whether a result depends on the size of its batch in the last digit.
    metadata: what the file says about the network and its training.
    """

    look: Callable
    classes: tuple
    image_size: int
    name: str
    operating_points: dict
    batch_size: int = 16
    has_lines: bool = False
    small_size: int | None = None
    batch_matters: bool = True
    metadata: dict = field(default_factory=dict)

    def __call__(self, images):
        batches = in_batches(images, self.batch_size)
        return np.concatenate([self.look(np.ascontiguousarray(batch)).probabilities for batch in batches])

    def judged(self, images, thresholds):
        """Probabilities, float32 (N, C), of images as `look_at` gives them."""
        return np.stack([seen.probabilities for seen in self.look_at(images, thresholds)])

    def look_at(self, images, thresholds, sizes=None):
        """Yield what is Seen in each image.

        An image with a probability near a threshold is looked at in up to four turns (FURTHER_TURNS), and an inactive
        region is less probable where nothing is dark (`lowering`). sizes: (height, width) of each cell in its image,
        before it was made square and of S pixels; None where all were as they are.
        """
        sizes = repeat(images.shape[-2:]) if sizes is None else iter(sizes)
        for batch in in_batches(images, self.batch_size):
            look = self.look(np.ascontiguousarray(self.filled_up(batch)))
            turns = [[seen_in(look, number)] for number in range(len(batch))]
            lowering = [self.lowering(image, size) for image, size in zip(batch, sizes)]
            for quarters, near in zip(FURTHER_TURNS, self.distances(batch)):
                doubts = [doubt_of(of_image, lower, thresholds) for of_image, lower in zip(turns, lowering)]
                numbers = np.flatnonzero(np.array(doubts) < near)
                for number, seen in zip(numbers, self.look_again(batch[numbers], quarters)):
                    turns[number] += seen
            for of_image, lower in zip(turns, lowering):
                seen = self.mean_of(of_image)
                yield seen._replace(probabilities=lower(seen.probabilities))

    def filled_up(self, batch):
        """A batch, filled up with its images again where a result depends on the size of the batch."""
        return np.resize(batch, (self.batch_size, *batch.shape[1:])) if self.batch_matters else batch

    def distances(self, images):
        """How near to a threshold, in logits, a probability of images (N, 1, S, S) must be for each of FURTHER_TURNS; a
        file that looks at all eight symmetries by itself needs none."""
        if self.metadata.get("tta"):
            return ()
        return NEAR if images.shape[-1] == self.image_size else NEAR_SMALL

    def look_again(self, images, quarters):
        """What is Seen in images (N, 1, S, S) turned by each of `quarters`: N lists of len(quarters) Seen."""
        seen = []
        for group in in_batches(images, 1 if self.batch_matters else max(1, len(images))):
            look = self.look(np.concatenate([turned(image, quarters) for image in group]))
            seen += [seen_in(look, number) for number in range(len(look.probabilities))]
        return in_batches(seen, len(quarters))

    def mean_of(self, turns):
        """What is Seen in an image by the mean of its turns, in the order of TURNS.

        Logits and class maps are means. Crack lines are those of the turn in which a crack is most probable.
        """
        upright = turns[0]
        if len(turns) == 1:
            return upright
        probabilities = np.stack([turn.probabilities for turn in turns])
        class_map = follow_lines = None
        if upright.map is not None:
            class_map = np.mean([turned_back(turn.map, quarters) for quarters, turn in zip(TURNS, turns)], axis=0)
        if upright.follow_lines:
            surest = int(probabilities[:, self.classes.index("crack")].argmax())
            follow_lines = partial(lines_turned_back, turns[surest], TURNS[surest])
        return Seen(mean_of_turns(probabilities), upright.first_look, class_map, follow_lines)

    def lowering(self, image, size):
        """A function that makes an image's probability of an inactive region LOWER_IF_NOT_DARK logits lower, of (C,),
        where no part of the image (1, S, S) is much darker than the rest. Small cells stay as they are: they are too
        blurred to tell.

        size: of the cell in its image, as in `look_at`.
        """
        is_small = image.shape[-1] != self.image_size or square_side(size) < min(FEW, self.image_size)
        if "inactive" not in self.classes or is_small:
            return np.copy
        inactive = self.classes.index("inactive")
        is_dark = cache(partial(has_dark_region, image[0], size))

        def lower(probabilities):
            probabilities = probabilities.copy()
            probability = probabilities[inactive]
            if probability > UNLIKELY and not is_dark():
                probabilities[inactive] = max(expit(logits_of(probability) - LOWER_IF_NOT_DARK), UNLIKELY)
            return probabilities

        return lower

    def side_for(self, pixels):
        """S for a cell whose square has so many pixels a side in its image (`images.square_side`)."""
        return self.small_size if self.small_size and pixels < FEW else self.image_size

    def thresholds(self, point="f1"):
        """Probabilities, float32 (C,), from which a cell counts as positive; InputError for an unknown point."""
        return np.asarray(choose_thresholds(self.operating_points, point), np.float32)


def doubt_of(turns, lower, thresholds):
    """How far an image is from another call, in logits, by the mean of what was Seen in its turns; see `lowering`."""
    mean = mean_of_turns([seen.probabilities for seen in turns])
    return doubt(lower(mean)[None], thresholds)[0]


def seen_in(look, number):
    """The part of a Look that is Seen in one image of its batch."""
    probabilities = look.probabilities[number]
    class_map = None if look.maps is None else look.maps[number]
    follow_lines = partial(look.follow_lines, number) if look.follow_lines else None
    return Seen(probabilities, probabilities, class_map, follow_lines)


def lines_turned_back(seen, quarters):
    """The crack lines Seen in an image that was turned by so many quarters to the left, as they lie upright."""
    return turned_back(seen.follow_lines(), quarters)


def in_batches(images, size):
    """Images (N, ...), or a list of N, in parts of `size`, the last of which may have fewer."""
    return [images[start : start + size] for start in range(0, len(images), size)]
