"""Oracle: the same numbers without the ones that are not finite; a number that is not finite is nobody's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lab import Lab, method_file
from vlbench.capability import SCORE, Batch, Classifier, Offered, unmarked
from vlbench.errors import UserError
from vlbench.evaluation.windows import NOT_FINITE, best
from vlbench.nn.beam import beam_search
from vlbench.task import Sample

BAD = [float("nan"), float("inf"), float("-inf")]


class Stored(Classifier):
    """A model whose states are its logits."""

    classes = ("a", "b", "c", "d", "e", "f")

    def logits(self, states: Any) -> Tensor:
        found: Tensor = states
        return found


def batch(count: int) -> Batch:
    samples = [Sample(str(i), (Path(f"{i}.png"),), target="a") for i in range(count)]
    return Batch(samples, torch.zeros(count, 3, 2, 2), torch.arange(count)[:, None])


@pytest.mark.parametrize("bad", BAD)
def test_a_class(bad: float) -> None:
    logits = torch.randn(3, 6)
    assert len(list(Stored().classify(logits, batch(3)))) == 3
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="a logit is not finite"):
        list(Stored().classify(logits, batch(3)))


def test_a_candidate() -> None:
    """-inf is a candidate that was not scored, and no fault."""
    offer = Offered(["a", "b"], 2)
    assert unmarked(offer.best(torch.tensor([[-1.0, float("-inf")], [-3.0, -2.0]])), SCORE) == [0, 1]
    found = offer.best(torch.tensor([[-1.0, -2.0], [float("nan"), -2.0]]))
    assert found.tolist() == [0, -1]
    with pytest.raises(ValueError, match="score of a candidate is not finite"):
        unmarked(found, SCORE)


@pytest.mark.parametrize("bad", BAD[:2])
def test_a_beam(bad: float) -> None:
    logits = torch.randn(2, 7)

    def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
        return logits if rows is None else logits.repeat_interleave(2, 0)

    def search() -> list[Tensor]:
        start = torch.zeros(2, 1, dtype=torch.long)
        return beam_search(step, start, beams=2, max_length=3, min_length=1, end=6)[0]

    assert len(search()) == 2
    logits[1, 3] = bad
    with pytest.raises(ValueError, match="score of a beam is not finite"):
        search()


@pytest.mark.parametrize("bad", BAD[:2])
@pytest.mark.parametrize("channel", [0, 4])
def test_a_map(bad: float, channel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where classes are gone through a few at a time."""
    logits = torch.randn(5, 6, 6)
    whole = best(logits, (6, 6))
    assert int(whole.max()) < 5
    logits[channel, 2, 3] = bad
    for numbers in (1 << 20, 36):
        monkeypatch.setattr("vlbench.evaluation.windows.NUMBERS", numbers)
        found = best(logits, (6, 6))
        assert found[2, 3] == NOT_FINITE
        found[2, 3] = whole[2, 3]
        assert torch.equal(found, whole)


SCORES = {
    "nan": ("weight * float('nan')", "not finite"),
    "inf": ("(weight * CONSTANT).abs() / 0", "not finite"),
    "shape": ("(weight * CONSTANT).abs()[:, :1]", "of shape"),
    "none": ("1.0", "of float"),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_a_plug_in(lab: Lab, name: str) -> None:
    """NaN scores removed everything where a half was asked for."""
    formula, sentence = SCORES[name]
    lab.plug("methods/mine.py", method_file("mine").replace("(weight * CONSTANT).abs()", formula))
    told = lab.run("method=mine", "sparsity=0.5")
    assert told.code == 2
    assert told.err.splitlines()[-1].startswith("vlbench: mine: ")
    assert sentence in told.err
    assert not list((lab.folder / "runs").glob("*mine*/result.json"))


# Class names ----------------------------------------------------------------------------------------------------------


def test_classes_that_the_model_does_not_have_are_refused(lab: Lab) -> None:
    """Folders named by an index scored 0.0 [0.0, 0.0] and exit 0."""
    for number, folder in enumerate(sorted((lab.data / "val").iterdir())):
        folder.rename(folder.with_name(str(number)))
    told = lab.run()
    assert told.code == 2
    assert "3 of the 3 classes of the data are no classes of the model (the first: 0, 1, 2; the model's: n9" in told.err
    assert len(told.err.splitlines()) == 1
    verified = lab("data", "verify", "task=imagenet", "split=val")
    assert "3 of the 3 class folders" in verified.out
    assert verified.code == 1


def test_one_unknown_class_among_known_ones_is_refused() -> None:
    samples = [Sample(str(i), (Path("a"),), target=name) for i, name in enumerate(("a", "b", "z"))]
    Stored().check_samples(samples[:2])
    with pytest.raises(UserError, match=r"1 of the 3 classes .*the first: z; the model's: a, b, c, d, e"):
        Stored().check_samples(samples)
