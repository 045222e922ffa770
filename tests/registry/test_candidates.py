"""Ranking over a sample's own candidates, against ranking of each sample alone over that list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.registry import prompted
from vlbench.capability import Batch, Offered, offered
from vlbench.task import Sample, digest_samples

OWN = (("red", "two"), ("a b c", "d e"), ("blue", "red"), ("two", "one", "f"), ("red", "two"))


@pytest.mark.parametrize("name", ["blip2-t5", "llava-llama"])
def test_each_sample_chooses_among_its_own(name: str, tmp_path: Path) -> None:
    model = prompted.build(name, tmp_path)
    batch = prompted.batch(decoding="rank")
    batch.samples = [replace(s, candidates=own) for s, own in zip(batch.samples, OWN, strict=True)]
    with torch.no_grad():
        states = model.encode(prompted.images())
        together = model.answer(states, batch)
        for i, own in enumerate(OWN):
            options = {"decoding": "rank", "candidates": list(own)}
            alone = Batch([batch.samples[i]], None, prompted.OWNER[i : i + 1], options)
            alone.samples = [replace(alone.samples[0], candidates=())]
            assert together[i] == model.answer(states, alone)[0]


def test_what_a_batch_offers() -> None:
    def batch(*own: tuple[str, ...], **options: Any) -> Batch:
        return Batch([Sample(str(i), (), candidates=one) for i, one in enumerate(own)], None, torch.tensor([]), options)

    assert offered(batch((), (), candidates=["x", "y"], k_test=1)) == Offered(["x", "y"], 1)
    offer = offered(batch(("A", "B"), ("B", "C"), candidates=["x"]))
    assert (offer.texts, offer.k) == (["A", "B", "C"], 3)
    scores = torch.tensor([[0.0, 1.0, 9.0], [9.0, 1.0, 2.0]])
    assert offer.best(scores).tolist() == [1, 2]
    assert offer.best(scores.flip(0), rows=[1, 0]).tolist() == [2, 1]
    with pytest.raises(ValueError, match="without candidates"):
        offered(batch(("A",), ()))


def test_candidates_enter_a_splits_digest_where_there_are_some() -> None:
    plain, own = Sample("1", (), "q"), Sample("1", (), "q", candidates=("A",))
    assert digest_samples([plain]) != digest_samples([own]) != digest_samples([replace(own, candidates=("B",))])
