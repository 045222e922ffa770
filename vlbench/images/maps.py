"""Class maps of segmentation: targets from their files, and predictions as text in predictions.jsonl."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .files import Undecodable, refuse_special

IGNORED = 255  # the class of pixels that count neither for nor against

Map = NDArray[np.uint8]


def read_map(label: LabelMap) -> Map:
    """(H, W) class numbers, IGNORED where there is none. Raises Undecodable naming the file."""
    numbers = _pixels(label.path)
    if label.zero_ignored:
        numbers = numbers - np.uint8(1)  # 0 becomes 255
    return numbers


def _pixels(path: Path) -> Map:
    refuse_special(path)
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise Undecodable(f"{path} is no map of class numbers: its mode is {image.mode}, and 8 bits are read")
            return np.asarray(image)
    except FileNotFoundError:
        raise Undecodable(f"{path} does not exist") from None
    except Undecodable:
        raise
    except Exception as error:  # Pillow's readers raise what they come across
        raise Undecodable(f"{path} does not decode: {str(error).strip() or 'unknown format'}") from None


def pack_map(numbers: Map) -> str:
    """A prediction's (H, W) class numbers as a PNG in base64: 5 to 15 KB for a street of 512 x 683."""
    stream = io.BytesIO()
    Image.fromarray(numbers, mode="L").save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def unpack_map(text: str) -> Map:
    """What pack_map was given. Raises ValueError for text that is none."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return np.asarray(image.convert("L"))
    except Exception as error:
        raise ValueError(f"a packed class map is damaged ({error})") from None


@dataclass(frozen=True)
class LabelMap:
    """The target of a segmentation sample: a picture of class numbers. zero_ignored: its 0 means "no class" and its n
    the class n - 1 (ADE20K's rule); else its numbers are the classes, and 255 is ignored."""

    path: Path
    zero_ignored: bool = False

    def __str__(self) -> str:
        return self.path.name  # what a split's digest reads: never a folder of this machine
