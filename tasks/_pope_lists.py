"""POPE's lists from what photographs show, as its own builder makes them (main.py and utils.py of RUCAIBox/POPE @
3df3ba1).

Of an image, three objects that are there, and three that are not: any (random), those that most photographs show
(popular), or for each object that is there the one that most often stands beside it (adversarial). The original draws
images, objects and the random ones from one generator; here each draw is a digest of what it is for, so that an image's
questions depend on no other image's. The original writes "imange" before vowels; its published lists do not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlbench.errors import UserError

from ._files import inside, read_json

KEPT = ("categories", "images", "annotations", "id", "name", "file_name", "image_id", "category_id")
ASKED = 3  # objects an image that are there, and as many that are not
Shown = Mapping[str, Sequence[str]]  # image -> the kinds of object that it shows


def lists(shown: Shown, images: Sequence[str]) -> dict[str, str]:
    """Subset -> JSON lines about `images`, which show ASKED kinds of object or more. shown: all that frequencies are
    counted over."""
    kinds = sorted({kind for objects in shown.values() for kind in objects})
    popular = _frequent(Counter(kind for objects in shown.values() for kind in set(objects)))
    beside = _beside(shown)
    subsets: dict[str, list[str]] = {"random": [], "popular": [], "adversarial": []}
    for image in images:
        there = sorted(set(shown[image]))
        present = [there.pop(_draw(f"{image}/{k}", len(there))) for k in range(ASKED)]
        absent = [kind for kind in kinds if kind not in shown[image]]
        rest = list(absent)
        chosen = {
            "random": [rest.pop(_draw(f"{image}/absent/{k}", len(rest))) for k in range(min(ASKED, len(rest)))],
            "popular": [kind for kind in popular if kind in set(absent)][:ASKED],
            "adversarial": adversarial(present, beside, absent, image),
        }
        for subset, negatives in chosen.items():
            for yes, no in zip(present, negatives, strict=False):
                subsets[subset] += [_line(len(subsets[subset]) + n, image, *one) for n, one in
                                    enumerate(((yes, "yes"), (no, "no")), 1)]  # fmt: skip
    return {subset: "".join(f"{line}\n" for line in lines) for subset, lines in subsets.items()}


def adversarial(
    present: Sequence[str], beside: Mapping[str, Sequence[str]], absent: Sequence[str], image: str
) -> list[str]:
    """For each object that is there, the most frequent companion that is not, and that was not taken before; any that
    is not there where it has no such companion."""
    chosen: list[str] = []
    for kind in present:
        left = [other for other in absent if other not in chosen]
        free = [other for other in beside[kind] if other in left]
        if left:
            chosen.append(free[0] if free else left[_draw(f"{image}/beside/{kind}", len(left))])
    return chosen


def _beside(shown: Shown) -> dict[str, list[str]]:
    """Kind -> the others, those first that most photographs show beside it."""
    counts: dict[str, Counter[str]] = {}
    for objects in shown.values():
        for kind in set(objects):
            counts.setdefault(kind, Counter()).update(set(objects) - {kind})
    return {kind: _frequent(other) for kind, other in counts.items()}


def _frequent(counts: Mapping[str, int]) -> list[str]:
    """The most frequent first, equal ones by the alphabet."""
    return sorted(counts, key=lambda kind: (-counts[kind], kind))


def _draw(key: str, bound: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % bound


def _line(number: int, image: str, kind: str, label: str) -> str:
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    text = f"Is there {article} {kind} in the image?"
    return json.dumps({"question_id": number, "image": image, "text": text, "label": label})


def coco_objects(path: Path) -> dict[str, list[str]]:
    """Image -> the names of the categories that COCO's instances say it shows. Raises UserError for another file."""
    content = read_json(path, lambda row: {key: value for key, value in row.items() if key in KEPT})
    try:
        names = {row["id"]: str(row["name"]) for row in content["categories"]}
        files = {row["id"]: str(row["file_name"]) for row in content["images"]}
        shown: dict[str, list[str]] = {inside(name, path).name: [] for name in files.values()}
        for row in content["annotations"]:
            shown[files[row["image_id"]]].append(names[row["category_id"]])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of COCO instances: {error!r}.") from None
    return shown


def chosen_images(shown: Shown) -> Iterator[str]:
    """Images that show enough kinds of object, in an order that has nothing to do with them."""
    fitting = (image for image, objects in shown.items() if len(set(objects)) >= ASKED)
    return iter(sorted(fitting, key=lambda image: hashlib.sha256(image.encode()).hexdigest()))
