"""Flags of a row, by `vlbench run` on a card of one's own: what its card says and what it scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab import Lab, workspace
from vlbench.records.flags import Stated, agrees
from vlbench.records.record import Parameters, Record
from vlbench.run.flags import flags_of


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    with workspace(tmp_path, monkeypatch, capsys, val=8) as made:
        yield made


def card(lab: Lab, **facts: Any) -> None:
    """A card of the workspace for the lab's weights."""
    told = "".join(f", {name}={value!r}" for name, value in facts.items())
    lab.plug(
        "registry/own.py",
        f'''"""A card of a stranger."""

from vlbench.model import Card, family
from vlbench.images.spec import ImageSpec
from vlbench.plugins.table import table

Base = table("models").get("deit-small").load()


@family(
    Card(
        name="own", title="Own", capabilities=("classify",), checkpoint={str(lab.weights)!r},
        image=ImageSpec(size=64){told},
    )
)
class Own(Base):
    """DeiT under another name."""
''',
    )


def run(lab: Lab, *words: str) -> Record:
    told = lab("run", "suite=full", "task=imagenet", "model=own", *words, "--json")
    assert told.code == 0, told
    return Record.model_validate_json(told.out)


def test_a_card_without_facts_gives_no_flag(lab: Lab) -> None:
    card(lab)
    assert run(lab).flags == []


def test_splits_that_the_weights_have_seen_or_were_chosen_by(lab: Lab) -> None:
    card(lab, trained_on=("imagenet/val", "imagenet/train"), selected_on=("imagenet/val",))
    assert run(lab).flags == ["contaminated", "selected-on-report"]
    assert run(lab, "method=magnitude", "sparsity=0.5").flags == ["contaminated", "selected-on-report"]
    assert run(lab, f"checkpoint={lab.weights}", "label=mine").flags == ["own checkpoint"], (
        "the card's facts are of other weights"
    )


def test_other_splits_are_no_matter(lab: Lab) -> None:
    card(lab, trained_on=("imagenet/train", "vqav2/val"), selected_on=("ade20k/val",))
    assert run(lab).flags == []


def test_a_dense_model_off_its_published_number_flags_all_its_rows(lab: Lab) -> None:
    card(lab, published={"imagenet/val/top1": 150.0, "imagenet/val/top5": 1.0, "vqav2/val/accuracy": 1.0})
    dense = run(lab)
    (flag,) = dense.flags
    assert flag == f"parity: top1 {dense.interval.value:.2f}, published 150"
    assert run(lab, "method=magnitude", "sparsity=0.5").flags == [flag]
    assert run(lab, "limit=6").flags == ["limit"], "the published number is of all samples"
    assert run(lab, f"checkpoint={lab.weights}", "label=mine").flags == ["own checkpoint"]


def test_a_number_within_the_interval_gives_no_flag(lab: Lab) -> None:
    card(lab)
    told = run(lab).interval
    card(lab, published={"imagenet/val/top1": round(told.value, 1)})
    assert run(lab, "precision=bf16").flags == []
    assert [agrees(x, 10.0, 12.0) for x in (9.84, 9.86, 12.14, 12.16)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("split", "n_tuned", "flags"), [("select", 3, ["selected-on-report"]), ("select", 1, []), ("val", 3, [])]
)
def test_a_row_on_the_split_that_its_settings_were_chosen_on(split: str, n_tuned: int, flags: list[str]) -> None:
    roles = {"train": "train", "select": "select", "report": "val"}
    words = SimpleNamespace(limit=0, label="", checkpoint="")
    spec = SimpleNamespace(words=words, task=SimpleNamespace(name="imagenet"))
    cell: Any = SimpleNamespace(spec=spec, split=split, task=SimpleNamespace(roles=lambda: roles))
    facts: Any = SimpleNamespace(trained_on=(), selected_on=())
    counts = Parameters(dense=9, total=9, nonzero=9, prunable=9, removed=0, towers={"vision": 0.0})
    assert flags_of(cell, facts, [], counts, n_tuned) == flags


def test_a_number_of_other_settings_is_not_compared_with(lab: Lab) -> None:
    """Of an option that an evaluator had: here imagenet's classes=."""
    card(lab, published={"imagenet/val/top1?classes=index": 150.0})
    assert run(lab).flags == []
    card(lab, published={"imagenet/val/top1?classes=index": 150.0, "imagenet/val/top1?classes=named": 160.0})
    (flag,) = run(lab, "precision=bf16").flags
    assert flag.endswith("published 160")
    stated = Stated.of("textvqa/val/accuracy?rule=official&ocr=true")
    assert stated.settings == (("rule", "official"), ("ocr", "true"))
    assert stated.is_of({"rule": "official", "ocr": True})
    assert not stated.is_of({"rule": "official", "ocr": False})
    assert not stated.is_of({"rule": "lmms", "ocr": True})
