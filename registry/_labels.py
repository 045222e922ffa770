"""The classes of a head by the folder's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.data import ImageNetInfo

from vlbench.errors import UserError

AGREEING = 0.9  # of the names: lists of ImageNet's words differ in a few
PLACEHOLDER = re.compile(r"LABEL_\d+")


def names_by_id(config: Mapping[str, Any], name: str, count: int) -> list[str] | None:
    """`id2label` of config.json, transformers' {"0": "first class", ...}, in the order of its numbers; None where there
    is none, or transformers' placeholders. ImageNet-1k's words in ImageNet-1k's order give its own names, which the
    folders of that data set have. Raises UserError where it names another number of classes."""
    labels = config.get("id2label")
    if not labels or (isinstance(labels, dict) and all(PLACEHOLDER.fullmatch(str(v)) for v in labels.values())):
        return None
    words = {str(key): value for key, value in labels.items()} if isinstance(labels, dict) else {}
    ordered = [words.get(str(number)) for number in range(count)]
    names = [word for word in ordered if isinstance(word, str) and word]
    known = _imagenet(names)  # some of its words stand for two classes (crane)
    if known is None and not len(names) == len(words) == len(set(names)) == count:
        raise UserError(
            f"{name}: id2label in config.json does not name each of the head's {count} classes once, from "
            f'"0" to "{count - 1}": put their names there, in the head\'s order, as "label_names": ["...", ...].'
        )
    return known or names


def _imagenet(names: list[str]) -> list[str] | None:
    """ImageNet-1k's own names where these are its words, class by class."""
    info = ImageNetInfo()
    theirs: list[str] = info.label_names()
    if len(names) != len(theirs):
        return None
    same = sum(
        _lemmas(ours)[0] in _lemmas(info.label_name_to_description(key))
        for ours, key in zip(names, theirs, strict=True)
    )
    return theirs if same >= AGREEING * len(theirs) else None


def _lemmas(text: str) -> list[str]:
    return [part.strip().lower().replace("_", " ") for part in text.split(",")]
