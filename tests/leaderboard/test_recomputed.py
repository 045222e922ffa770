"""Edits that are consistent with themselves but not with the scores: every number moved as a careful forger would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.leaderboard.factory import board, record
from vlbench.errors import UserError
from vlbench.leaderboard.rows import load_results
from vlbench.records.record import Record, pack_scores, write_record

Edit = Callable[[Record], Record]


def shifted(by: float) -> Edit:
    """A better number: its interval and the difference to the dense model moved as much."""

    def edit(one: Record) -> Record:
        assert one.vs_dense is not None
        moved = {name: getattr(one.interval, name) + by for name in ("value", "low", "high")}
        versus = {name: getattr(one.vs_dense, name) + by for name in ("delta", "low", "high")}
        return one.model_copy(
            update={
                "interval": one.interval.model_copy(update=moved),
                "vs_dense": one.vs_dense.model_copy(update=versus),
                "metrics": {**one.metrics, one.metric: one.metrics[one.metric] + by},
            }
        )

    return edit


def part(name: str, **values: object) -> Edit:
    return lambda one: one.model_copy(update={name: getattr(one, name).model_copy(update=values)})


def narrower(one: Record) -> Record:
    half = one.interval.se / 2
    ends = {"low": one.interval.value - half, "high": one.interval.value + half, "se": half / 2}
    return part("interval", **ends)(one)


EDITS: dict[str, tuple[Edit, str]] = {
    "a better number": (shifted(3.0), "accuracy is .* by its scores"),
    "a little better": (shifted(0.01), "accuracy is .* by its scores"),
    "a narrower interval": (narrower, "the standard error is .* by its scores"),
    "a narrower interval with its error": (
        lambda one: part("interval", low=one.interval.value - 0.1, high=one.interval.value + 0.1)(one),
        "its interval is .* by its scores",
    ),
    "a smaller p": (part("vs_dense", p=1e-9), "difference to the dense model is in .* with p"),
    "another split of samples": (lambda one: one.model_copy(update={"samples": 1499}), "1499 samples, and 1500 scores"),
    "damaged scores": (lambda one: one.model_copy(update={"scores": one.scores[:-9]}), "score vector is damaged"),
    "another option": (
        lambda one: one.model_copy(
            update={"chain": [one.chain[0].model_copy(update={"options": {**one.chain[0].options, "sparsity": 0.4}})]}
        ),
        "it says one thing of its chain, and its identity another",
    ),
    "other weights": (
        lambda one: one.model_copy(update={"weights_digest": "0" * 64}),
        "it says one thing of its weights, and its identity another",
    ),
    "another seed, its identity too": (
        lambda one: one.model_copy(update={"seed": 9, "identity": {**one.identity, "seed": 9}}),
        "its cell's name is not that of its identity",
    ),
    "training that is not told": (
        lambda one: one.model_copy(update={"trained": not one.trained}),
        "its model was .*trained, it says, in",
    ),
    "more clusters": (lambda one: one.model_copy(update={"clusters": 9999}), "it has 9999 clusters, and"),
    "more removed": (
        lambda one: part("parameters", removed=1_200_000)(one),
        "0.800000 of its prunable set is removed, and its towers say 0.5",
    ),
    "more removed, its towers too": (
        lambda one: part("parameters", removed=1_200_000, towers={"vision": 0.8})(one),
        "entries are zero, and .* parameters are not",
    ),
    "a larger dense model": (
        lambda one: part("parameters", dense=one.parameters.dense * 2)(one),
        "its dense model has .* parameters, and",
    ),
    "cheaper than its pattern": (
        lambda one: one.model_copy(update={"macs": 5}),
        "takes 5 MACs of 45600000, which pattern unstructured does not leave",
    ),
    "a dearer dense model": (
        lambda one: one.model_copy(update={"macs": 10**9, "macs_dense": 10**9}),
        "its dense model has",
    ),
}


def write(folder: Path, records: list[Record]) -> None:
    for number, one in enumerate(records):
        write_record(folder / f"{number:02d}.json", one)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("what", EDITS)
def test_an_edit_that_fits_itself_is_caught_by_the_scores(tmp_path: Path, what: str, last: bool) -> None:
    """Whether the dense model's file comes before the edited one's or after it."""
    edit, why = EDITS[what]
    good = [record(), record("magnitude", sparsity=0.5, accuracy=0.55, pattern="unstructured")]
    write(tmp_path / "good", good[::-1] if last else good)
    load_results(tmp_path / "good", scores=False)
    edited = [good[0], edit(good[1])]
    write(tmp_path / "bad", edited[::-1] if last else edited)
    with pytest.raises(UserError, match=why) as refused:
        load_results(tmp_path / "bad", scores=False)
    assert re.search(r"bad/0[01]\.json contradicts itself", str(refused.value))


def test_a_forged_difference_is_caught_by_both_models_scores(tmp_path: Path) -> None:
    """The scores of the dense model are edited with all that follows from them in its own file."""
    good = [record(), record("magnitude", sparsity=0.5, accuracy=0.55, pattern="unstructured")]
    worse = record(values=np.roll(np.eye(1, 1500).ravel() * 0 + (np.arange(1500) % 10 < 8), 3))
    write(tmp_path, [worse, good[1]])
    with pytest.raises(UserError, match="difference to the dense model is"):
        load_results(tmp_path, scores=False)


def test_what_a_board_can_have_is_right(tmp_path: Path) -> None:
    write(tmp_path, board())
    assert len(load_results(tmp_path, scores=False)) == len(board())


def test_a_corpus_metric_is_that_of_the_summed_statistics(tmp_path: Path) -> None:
    """Every intersection is its union: mIoU is 100."""
    scores = pack_scores(np.ones((1500, 2 * 150)).tolist())
    forged = record("dense", task="ade20k", metric="miou", metrics={"miou": 99.0}, scores=scores)
    interval = forged.interval.model_copy(update={"value": 99.0, "low": 98.0, "high": 99.9})
    write_record(tmp_path / "a.json", forged.model_copy(update={"interval": interval}))
    with pytest.raises(UserError, match="miou is 100 by its scores, it says 99"):
        load_results(tmp_path, scores=False)
