"""Preprocessing as a sentence: ``"resize 256; crop 224; divide 255; subtract .485 .456 .406"``.

Steps are taken in the order they are written, so that what was done in training can be stated as it
was done. On the way an image is height × width × colour; what comes out is colour first.

==================== ===================================================================
``rgb``, ``bgr``     colours in this order (images only; rgb is what files are read as)
``gray``             one luminance channel (images only)
``resize H [W]``     to H × W; with one number the shorter side (images only)
``crop H [W]``       the middle
``divide a [b …]``   by one number, or one per colour
``subtract a [b …]`` one number, or one per colour
``hwc``              leave the colours last
==================== ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnfold.errors import InputsError
from bnfold.statistics.data.ports import Array
from bnfold.statistics.optional import optional

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# How many numbers each step takes; None is one or more.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "rgb": (0, 0),
    "bgr": (0, 0),
    "gray": (0, 0),
    "hwc": (0, 0),
    "resize": (1, 2),
    "crop": (1, 2),
    "divide": (1, None),
    "subtract": (1, None),
}
_OF_IMAGES = ("rgb", "bgr", "gray", "resize")


@dataclass(frozen=True)
class Preprocess:
    """What is done to every sample before the model sees it.

    Attributes:
        text: the steps as written; part of what identifies a data set.
        steps: each verb with its numbers.
    """

    text: str
    steps: tuple[tuple[str, tuple[float, ...]], ...]

    @classmethod
    def of(cls, text: str | None) -> Preprocess | None:
        """Read the sentence, if there is one.

        Raises:
            InputsError: a step is unknown or has the wrong number of numbers.
        """
        if text is None:
            return None
        steps = tuple(_step(part.split()) for part in text.split(";") if part.strip())
        return cls(text, steps)

    def image(self, path: Path) -> Array:
        """Read and prepare one image file.

        Raises:
            InputsError: the file is no image.
            MissingDependencyError: pillow is not installed.
        """
        pillow = optional("PIL.Image", "images")
        verbs = [verb for verb, _ in self.steps]
        try:
            with pillow.open(path) as opened:
                picture = opened.convert("L" if "gray" in verbs else "RGB")
        except OSError as error:
            raise InputsError(f"{path} cannot be read as an image ({error}); remove it.") from error
        for verb, numbers in self.steps:
            if verb == "resize":
                picture = picture.resize(_size(picture.size, numbers), pillow.Resampling.BILINEAR)
            elif verb == "crop":
                picture = picture.crop(_box(picture.size, numbers))
        pixels = np.atleast_3d(np.asarray(picture))
        pixels = pixels[..., ::-1] if "bgr" in verbs else pixels
        return self._computed(pixels, -1) if "hwc" in verbs else self._first(self._computed(pixels, -1))

    def batch(self, array: Array) -> Array:
        """Prepare an array of samples, colour on axis 1 (or last, with ``hwc``).

        Raises:
            InputsError: a step needs an image file, or its numbers do not fit the colours.
        """
        verbs = [verb for verb, _ in self.steps]
        wrong = next((verb for verb in verbs if verb in (*_OF_IMAGES, "crop")), None)
        if wrong is not None:
            raise InputsError(f"{wrong!r} applies to image files; prepare arrays before they are saved.")
        return self._computed(array, -1 if "hwc" in verbs or array.ndim < 2 else 1)

    def _computed(self, values: Array, axis: int) -> Array:
        arithmetic: dict[str, Callable[[Array, Array], Array]] = {
            "divide": np.divide,
            "subtract": np.subtract,
        }
        for verb, numbers in self.steps:
            if verb in arithmetic:
                values = arithmetic[verb](values.astype(np.float32), _along(numbers, values, axis))
        return values

    def _first(self, pixels: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _step(words: list[str]) -> tuple[str, tuple[float, ...]]:
    verb = words[0].lower()
    if verb not in _NUMBERS:
        raise InputsError(f"Preprocessing has no step {verb!r}; it has {', '.join(sorted(_NUMBERS))}.")
    least, most = _NUMBERS[verb]
    try:
        numbers = tuple(float(word) for word in words[1:])
    except ValueError:
        raise InputsError(f"Preprocessing step {' '.join(words)!r} takes numbers behind its verb.") from None
    if len(numbers) < least or (most is not None and len(numbers) > most):
        raise InputsError(f"Preprocessing step {' '.join(words)!r} has {len(numbers)} numbers; see the docs.")
    if (verb == "divide" and 0.0 in numbers) or (verb in ("resize", "crop") and min(numbers) < 1):
        raise InputsError(f"Preprocessing step {' '.join(words)!r} holds a number that makes no sense.")
    return verb, numbers


def _along(numbers: tuple[float, ...], values: Array, axis: int) -> Array:
    if len(numbers) > 1 and (axis >= values.ndim or values.shape[axis] != len(numbers)):
        raise InputsError(
            f"Preprocessing names {len(numbers)} numbers for data of shape {list(values.shape)}; "
            "give one number, or one per colour."
        )
    shape = [1] * values.ndim
    shape[axis] = len(numbers)
    return np.asarray(numbers, np.float32).reshape(shape)


def _size(size: tuple[int, int], numbers: tuple[float, ...]) -> tuple[int, int]:
    """Width and height after a resize; ``size`` is width and height too, as pillow has them."""
    if len(numbers) == 2:
        return int(numbers[1]), int(numbers[0])
    ratio = numbers[0] / min(size)
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _box(size: tuple[int, int], numbers: tuple[float, ...]) -> tuple[int, int, int, int]:
    height, width = (int(numbers[0]), int(numbers[-1]))
    if width > size[0] or height > size[1]:
        raise InputsError(f"An image of {size[1]} × {size[0]} is too small for crop {height} {width}.")
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height
