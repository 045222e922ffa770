"""Small pictures inside a page: images of samples, and maps of classes in colours."""

from __future__ import annotations

import base64
import colorsys
import io
from pathlib import Path

from PIL import Image

from ..images.files import Undecodable
from ..images.maps import IGNORED, Map
from .document import escaped

SIDE = 224  # pixels of the longer side
QUALITY = 82  # of JPEG: about 8 KB each


def thumbnail(path: Path, label: str) -> str:
    """The file with its label below, or a sentence where it does not decode."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except Exception as error:  # Pillow's readers raise what they come across
        return f"<p>{escaped(label)}: {escaped(Undecodable(f'{path.name} does not decode ({error})'))}</p>"
    small.thumbnail((SIDE, SIDE))
    return _embedded(small, "JPEG", label)


def class_map(numbers: Map, label: str) -> str:
    """A map of class numbers (H, W) with its label below: a colour a class, black where there is none."""
    image = Image.fromarray(numbers, mode="L").convert("P")
    image.putpalette(_palette())
    image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return _embedded(image, "PNG", label)


def _palette() -> list[int]:
    """256 colours: hues a golden angle apart, so that neighbours differ, in three lightnesses."""
    colours: list[int] = []
    for number in range(IGNORED):
        red_green_blue = colorsys.hsv_to_rgb(0.618034 * number % 1, 0.67, (0.92, 0.75, 0.57)[number % 3])
        colours += [round(255 * part) for part in red_green_blue]
    return [*colours, 0, 0, 0]


def _embedded(image: Image.Image, kind: str, label: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format=kind, **({"quality": QUALITY} if kind == "JPEG" else {}))
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    source = f"data:image/{kind.lower()};base64,{text}"
    return f'<figure><img src="{source}" alt=""><figcaption>{escaped(label)}</figcaption></figure>'
