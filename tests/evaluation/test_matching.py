"""Retrieval in two passes equals scoring every pair and ranking the published way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.workers import together
from vlbench.capability import Batch, Matcher, Outputs
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.matching import candidates, pack, unpack
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.images.spec import ImageSpec
from vlbench.machine.workers import ALONE, World
from vlbench.model import Card, Model
from vlbench.task import Sample, Task

SPEC = ImageSpec(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGES, TEXTS, WIDTH = 11, 24, 6
RNG = np.random.default_rng(3)
OWNER = np.sort(RNG.integers(0, IMAGES, TEXTS))
OWNER[:IMAGES] = np.arange(IMAGES)
OWNER = np.sort(OWNER)
# Texts resemble their images a little, so that many right pairs are re-ranked, and logits are as large as similarities,
# so that a pair that one direction alone has among its best would change the other's ranks.
IMAGE = RNG.standard_normal((IMAGES, WIDTH)).astype(np.float32)
TEXT = (0.5 * IMAGE[OWNER] + RNG.standard_normal((TEXTS, WIDTH))).astype(np.float32)
LOGITS = (3 * RNG.standard_normal((IMAGES, TEXTS))).astype(np.float32)


class Known(Matcher):
    """A model whose embeddings and logits are tables: an image is its grey, a text its number."""

    def __init__(self, *, reranks: bool = True, wrong: int | None = None) -> None:
        self.card, self.net, self.wrong = Card("known", "", ("match",), "", SPEC), nn.Linear(1, 1), wrong
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.reranks = reranks  # type: ignore[misc]
        self.pairs: list[tuple[int, int]] = []
        self.calls: list[str] = []

    def encode(self, images: Tensor) -> Tensor:
        return (images.mean((1, 2, 3)) * 255).round().long()

    def embed(self, states: Tensor, batch: Batch) -> list[dict[str, Any]]:
        self.calls.append("embed")
        rows = [int(states[o]) for o in batch.owner[:, 0]]
        return [
            {"image": torch.from_numpy(IMAGE[i]), "texts": torch.from_numpy(TEXT[[int(t) for t in s.texts]])}
            for i, s in zip(rows, batch.samples, strict=True)
        ]

    def match(self, states: Tensor, batch: Batch) -> list[Tensor]:
        self.calls.append("match")
        found = []
        for sample, row in zip(batch.samples, states[batch.owner[:, 0]].tolist(), strict=True):
            if row == self.wrong:
                raise ValueError("this image")
            columns = [int(batch.options["gallery"][c]) for c in batch.options["pairs"][sample.id]]
            self.pairs += [(row, c) for c in columns]
            found.append(torch.from_numpy(LOGITS[row, columns]))
        return found

    def match_outputs(self, batch: Batch) -> Outputs:
        raise NotImplementedError


class Ranks:
    """A task that keeps the ranks as they are."""

    capability = "match"

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[float]:
        return [float(p["text_rank"]) for p in predictions]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    found = []
    for i in range(IMAGES):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (4, 4), (i, i, i)).save(path)
        found.append(Sample(f"im{i}", (path,), texts=tuple(str(t) for t in np.flatnonzero(i == OWNER))))
    return found


def evaluate(model: Known, samples: list[Sample], file: Path, k: int, world: World = ALONE) -> list[dict[str, Any]]:
    settings = {"labelled": True, "k_test": k}
    loop = Evaluator(cast(Model, model), cast(Task, Ranks()), ImageStore(SPEC), settings=settings, batch_size=2)
    return loop.run(samples, Predictions(file, world))


def published(k: int) -> tuple[list[int], list[int]]:
    """Ranks by BLIP's itm_eval: each direction re-ranks its own k best, everything else has -100."""
    similar = IMAGE @ TEXT.T
    image, text = np.full((IMAGES, TEXTS), -100.0), np.full((TEXTS, IMAGES), -100.0)
    for i in range(IMAGES):
        for t in np.argsort(-similar[i])[:k]:
            image[i, t] = LOGITS[i, t] + similar[i, t]
    for t in range(TEXTS):
        for i in np.argsort(-similar[:, t])[:k]:
            text[t, i] = LOGITS[i, t] + similar[i, t]
    return of(image, text)


def of(image: Any, text: Any) -> tuple[list[int], list[int]]:
    """Pessimistic ranks from 0, by sorting nothing."""
    first = [min(sum(image[i, j] >= image[i, t] for j in range(TEXTS) if OWNER[j] != i)
                 for t in range(TEXTS) if OWNER[t] == i) for i in range(IMAGES)]  # fmt: skip
    second = [sum(text[t, i] >= text[t, OWNER[t]] for i in range(IMAGES) if i != OWNER[t]) for t in range(TEXTS)]
    return [int(x) for x in first], [int(x) for x in second]


def told(lines: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    ranks = [line["prediction"] for line in lines]
    return [p["text_rank"] for p in ranks], [r for p in ranks for r in p["image_ranks"]]


@pytest.mark.parametrize("k", [1, 3, 5, TEXTS])
def test_re_ranking_is_the_published_one(tmp_path: Path, samples: list[Sample], k: int) -> None:
    model = Known()
    lines = evaluate(model, samples, tmp_path / "predictions.jsonl", k)
    assert told(lines) == published(k)
    assert [line["score"] for line in lines] == [float(r) for r in published(k)[0]]
    assert len(model.pairs) == len(set(model.pairs))  # each pair once for both directions
    assert len(model.pairs) <= min(k * IMAGES + k * TEXTS, IMAGES * TEXTS)
    assert sorted(p.name for p in tmp_path.glob("*.*l*")) == ["predictions.jsonl"]


@pytest.mark.parametrize("model", [Known(reranks=False), Known()])
def test_without_re_ranking_the_similarity_ranks(tmp_path: Path, samples: list[Sample], model: Known) -> None:
    lines = evaluate(model, samples, tmp_path / "predictions.jsonl", 0 if model.reranks else 5)
    assert told(lines) == of(IMAGE @ TEXT.T, (IMAGE @ TEXT.T).T)
    assert "match" not in model.calls


def test_an_image_that_does_not_decode_is_left_out(tmp_path: Path, samples: list[Sample]) -> None:
    samples[4].images[0].unlink()
    lines = evaluate(Known(), samples, tmp_path / "predictions.jsonl", 3)
    assert [line["status"] for line in lines] == ["ok"] * 4 + ["error"] + ["ok"] * 6


def test_an_image_that_fails_in_re_ranking_is_an_error(tmp_path: Path, samples: list[Sample]) -> None:
    lines = evaluate(Known(wrong=7), samples, tmp_path / "predictions.jsonl", 3)
    assert [line["status"] for line in lines] == ["ok"] * 7 + ["error"] + ["ok"] * 3
    assert lines[7]["error"].startswith("ValueError: this image")


def test_killed_in_either_pass_nothing_is_done_twice(tmp_path: Path, samples: list[Sample]) -> None:
    calm = evaluate(Known(), samples, tmp_path / "calm.jsonl", 3)

    class Killed(Known):
        def encode(self, images: Tensor) -> Tensor:
            if len(self.calls) == kill:
                raise KeyboardInterrupt
            return super().encode(images)

    for kill in (2, 6, 8):
        file = tmp_path / str(kill) / "predictions.jsonl"
        first, second = Killed(), Known()
        with pytest.raises(KeyboardInterrupt):
            evaluate(first, samples, file, 3)
        assert evaluate(second, samples, file, 3) == calm
        assert len(first.calls) + len(second.calls) == 12
        assert file.read_bytes() == (tmp_path / "calm.jsonl").read_bytes()


@pytest.mark.parametrize("size", [2, 3, 7])
def test_workers_share_both_passes(tmp_path: Path, samples: list[Sample], size: int) -> None:
    calm = evaluate(Known(), samples, tmp_path / "calm.jsonl", 3)
    models = [Known() for _ in range(size)]
    file = tmp_path / "together" / "predictions.jsonl"
    found = together(size, lambda world: evaluate(models[world.rank], samples, file, 3, world))
    assert found == [calm] * size
    assert file.read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    assert sum(len(m.calls) for m in models) == 12


def test_candidates_are_those_of_both_directions() -> None:
    similar = IMAGE @ TEXT.T
    for row, chosen in enumerate(candidates(similar, 2)):
        wanted = {*np.argsort(-similar[row])[:2].tolist()}
        wanted |= {t for t in range(TEXTS) if row in np.argsort(-similar[:, t])[:2]}
        assert chosen.tolist() == sorted(wanted)


def test_numbers_survive_and_must_be_finite() -> None:
    values = torch.tensor([1.5, -2.25, 3e-8])
    assert torch.from_numpy(unpack(pack(values))).equal(values)
    with pytest.raises(ValueError, match="not finite"):
        pack(torch.tensor([float("nan")]))
