"""Oracle: class names of a head as the folder's id2label says them, by number, in timm's and in DINO's folders."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from timm.data import ImageNetInfo

from vlbench.errors import UserError

deit = importlib.import_module("vlbench.registry.deit")
dino = importlib.import_module("vlbench.registry.dino")
INFO = ImageNetInfo()
WNIDS = INFO.label_names()
WORDS = [INFO.label_name_to_description(wnid) for wnid in WNIDS]


def of_timm(config: dict[str, Any], count: int) -> list[str]:
    names: list[str] = deit._classes(config, deit.DeiT.cards[0], count)
    return names


def of_dino(config: dict[str, Any], count: int) -> list[str]:
    names: list[str] = dino._names(dino.Dino.cards[0], {**config, "classes": count})
    return names


def numbered(names: list[str]) -> dict[str, str]:
    return {str(i): name for i, name in enumerate(names)}


READERS = pytest.mark.parametrize("read", [of_timm, of_dino])
Read = Callable[[dict[str, Any], int], list[str]]


@READERS
def test_numbers_give_the_order_and_not_the_file(read: Read) -> None:
    """Keys sorted as texts put class 10 before class 2."""
    names = [f"class {i}" for i in range(12)]
    assert read({"id2label": dict(sorted(numbered(names).items()))}, 12) == names
    assert read({"id2label": numbered(names), "label_names": names[::-1]}, 12) == names[::-1]


@READERS
def test_a_thousand_classes_are_imagenets_where_their_names_say_so(read: Read) -> None:
    """The words in ImageNet's order give its names; in another order the head's classes are not ImageNet's."""
    assert read({}, 1000) == WNIDS
    assert read({"id2label": numbered([f"LABEL_{i}" for i in range(1000)])}, 1000) == WNIDS
    assert read({"id2label": numbered(WORDS)}, 1000) == WNIDS
    assert read({"id2label": numbered([word.split(",")[0] for word in WORDS])}, 1000) == WNIDS
    assert read({"id2label": numbered(WNIDS[::-1])}, 1000) == WNIDS[::-1]
    assert (
        read({"id2label": numbered([f"{w} ({i})" for i, w in enumerate(WORDS)][::-1])}, 1000)[0] == f"{WORDS[-1]} (999)"
    )


@READERS
@pytest.mark.parametrize(
    "labels",
    [{"0": "a"}, {"0": "a", "2": "b"}, {"0": "a", "1": "a"}, {"0": "a", "1": ""}, {"0": "a", "1": 3}, ["a", "b"]],
)
def test_names_that_are_not_one_a_class_are_refused(read: Read, labels: Any) -> None:
    with pytest.raises(UserError, match=r"id2label in config\.json does not name each of the head's 2 classes once"):
        read({"id2label": labels}, 2)


@READERS
def test_a_head_without_names_is_refused(read: Read) -> None:
    with pytest.raises(UserError, match="a head of 2 classes has no names"):
        read({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, 2)
