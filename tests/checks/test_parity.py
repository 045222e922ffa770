"""`vlbench check model=NAME`: against cards whose published numbers are made from what the model scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.lab import Lab, workspace
from vlbench.checks import parity
from vlbench.checks.parity import Comparison
from vlbench.plugins.table import table
from vlbench.records.flags import Stated
from vlbench.records.record import Interval, Record, pack_scores


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    with workspace(tmp_path, monkeypatch, capsys, val=8) as made:
        yield made


def card(lab: Lab, published: Mapping[str, float], trained_on: tuple[str, ...] = ()) -> None:
    """A card of the workspace for the lab's weights."""
    image = "ImageSpec(size=64, resize='crop', crop_pct=0.875)"
    lab.plug(
        "registry/own.py",
        f'''"""A card of a stranger."""

from vlbench.model import Card, family
from vlbench.images.spec import ImageSpec
from vlbench.plugins.table import table

Base = table("models").get("deit-small").load()


@family(
    Card(
        name="own", title="Own", capabilities=("classify",), checkpoint={str(lab.weights)!r}, image={image},
        published={dict(published)!r}, trained_on={trained_on!r},
    )
)
class Own(Base):
    """DeiT under another name."""
''',
    )


def measured(lab: Lab) -> Record:
    """What the card scores, by `vlbench run`."""
    words = ("suite=full", "task=imagenet", "model=own", "checkpoint=")
    return Record.model_validate_json(lab("run", *words, "--json").out)


def test_published_numbers_that_agree(lab: Lab) -> None:
    card(lab, {"imagenet/val/top1": 0.0})
    scored = measured(lab)
    card(lab, {f"imagenet/val/{name}": round(value, 1) for name, value in scored.metrics.items()})
    told = lab("check", "model=own")
    assert told.code == 0, told
    lines = told.out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["imagenet/val/top1", "imagenet/val/top5"]
    assert all(line.endswith("agrees") for line in lines)
    assert f"{scored.metrics['top1']:.2f} [{scored.interval.low:.2f}, {scored.interval.high:.2f}]" in lines[0]


def test_published_numbers_that_differ_name_the_causes_in_order(lab: Lab) -> None:
    card(lab, {"imagenet/val/top1": 99.9}, trained_on=("imagenet/val",))
    told = lab("check", "model=own", "limit=6")
    assert told.code == 1
    assert "does not score what its card says" in told.err
    assert "DIFFERS by -" in told.out
    causes = [line.split(":")[0].strip() for line in told.out.splitlines()[2:]]
    assert causes == ["preprocessing", "split", "checkpoint", "precision", "contamination", "limit"]
    assert "here 64 px, crop, crop_pct 0.875, bicubic" in told.out
    assert "here val, 6 samples" in told.out


def test_splits_that_only_a_server_scores_are_told_and_not_run(lab: Lab) -> None:
    card(lab, {"vqav2/test-dev/accuracy": 77.4, "nothing/val/x": 1.0})
    told = lab("check", "model=own")
    assert told.code == 0
    assert "vqav2/test-dev: only its server knows the answers; not run" in told.out
    assert "nothing/val: there is no task nothing here" in told.out


def test_mini_cards_have_nothing_to_compare_with(lab: Lab) -> None:
    told = lab("check", "model=deit-mini")
    assert told.code == 0
    assert "deit-mini has no published numbers (it is of the mini suite" in told.out


def test_wrong_words(lab: Lab) -> None:
    assert "Did you mean 'limit'?" in lab.refused("check", "model=deit-mini", "limti=3")
    assert "Did you mean 'deit-mini'?" in lab.refused("check", "model=deit-mni")
    assert "method=NAME with task=NAME or none, or model=NAME" in lab.refused("check", "limit=3")


def test_every_card_names_what_can_be_compared() -> None:
    """task/split/metric of every built-in card, where the task is there."""
    for entry in table("models").entries.values():
        for key in entry.facts.get("published") or {}:
            stated = Stated.of(key)
            task, split, metric = stated.task, stated.split, stated.metric
            if task in table("tasks").entries:
                cls = table("tasks").get(task).load()
                assert split in cls.report_splits(), (entry.name, key)
                assert metric in cls.metrics, (entry.name, key)


@pytest.mark.parametrize(("published", "agrees"), [(81.0, True), (80.36, True), (80.34, False), (83.66, False)])
def test_the_interval_and_its_slack(published: float, agrees: bool) -> None:
    """[80.5, 83.5] and 0.15 more on both sides."""
    assert Comparison("x", published, 82.0, 80.5, 83.5, own=True).agrees is agrees


def test_the_interval_of_a_secondary_metric_is_its_own_columns() -> None:
    """By hand: 75 % of four samples, se = sqrt(4/3 * 3/16) / 2, t(3) = 3.1824; widened as the primary's is."""
    scores = [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    se = 100 * np.sqrt(4 / 3 * (3 * 0.0625 + 0.5625)) / 4
    for factor in (1.0, 2.0):
        spread = Interval(value=25.0, low=0.0, high=50.0, se=float(se) * factor, clusters=4)
        record = Record.model_construct(scores=pack_scores(scores), interval=spread)
        found = parity._interval_of(record, 75.0)
        assert found is not None
        assert found.high - found.low == pytest.approx(2 * 3.18244630528 * se * factor)
    assert parity._interval_of(record, 60.0) is None


def test_json_of_the_record_is_left_as_a_run(lab: Lab) -> None:
    """check leaves a finished run, which the same words of `vlbench run` find."""
    card(lab, {"imagenet/val/top1": 0.0})
    lab("check", "model=own")
    (made,) = (lab.folder / "runs").glob("*/result.json")
    assert json.loads(made.read_text())["cell"] == measured(lab).cell
