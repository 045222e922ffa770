"""Oracle: the loop on the CPU, to the byte; what the host waits for is counted on the simulated device."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.simulated import simulated
from tests.training.families import TEXTS, capability, open_model
from vlbench.capability import Awaited, Pass, capability_of
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.matching import EMBED, MATCH, unpack
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.task import Sample

BATCHES = 3
WORDS = ["red", "blue", "two", "yes", "a red circle"]
# What the host may wait for in a batch while the device has nothing else to do: the best k candidates of a question.
STALLS = {
    "deit-mini": ("classify", {}, 0), "segmenter-mini": ("segment", {"window": 64, "stride": 64}, 0),
    "clip-mini": ("embed", {}, 0), "blip-retrieval-mini": ("embed", {}, 0), "blip-nlvr-mini": ("judge", {}, 0),
    "blip-vqa-mini": ("answer", {"decoding": "rank", "candidates": WORDS, "k_test": 3}, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Four samples a batch, two images each, texts of two lengths."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for i in range(4 * BATCHES):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    for i in range(4 * BATCHES):
        paths = (folder / f"{i:02}.png", folder / f"{(i + 1) % 12:02}.png")
        found.append(Sample(f"{i:02}", paths, TEXTS[i % 2], texts=(TEXTS[i % 2], TEXTS[2])))
    return found


def run(model: Any, samples: list[Sample], method: str, options: dict[str, Any], file: Path) -> bytes:
    task: Any = SimpleNamespace(capability=capability(model))
    evaluator = Evaluator(
        model, task, ImageStore(model.card.image), settings=options, batch_size=4,
    )  # fmt: skip
    predictions = Predictions(file)
    one = {"embed": EMBED, "match": MATCH}.get(method) or Pass(method, capability_of(method).predict)
    predictions.finish(evaluator.predict(one, samples, predictions, options))
    return file.read_bytes()


@pytest.mark.parametrize("name", STALLS)
def test_a_batch_is_waited_for_once_and_late(name: str, samples: list[Sample], tmp_path: Path) -> None:
    method, options, stalls = STALLS[name]
    model = open_model(name)
    shown = samples if method == "judge" else [Sample(s.id, s.images[:1], s.text, texts=s.texts) for s in samples]
    wanted = run(model, shown, method, options, tmp_path / "cpu.jsonl")
    with simulated() as counts:
        model.place("fp32")
        counts.clear()
        found = run(model, shown, method, options, tmp_path / "sim.jsonl")
        late = {line: n for line, n in counts.waits.items() if "machine/device.py" in line}
        stalled = {line: n for line, n in counts.waits.items() if line not in late}
    assert sum(late.values()) == BATCHES, late
    assert sum(stalled.values()) == stalls * BATCHES, stalled
    assert counts.fetched
    assert len(found) == len(wanted)
    if method != "embed":  # floats, which another kernel rounds otherwise
        assert found == wanted


def test_reranking_waits_for_a_batch_once_and_late(samples: list[Sample], tmp_path: Path) -> None:
    """The second pass of retrieval, where images have different numbers of texts to score."""
    model = open_model("blip-retrieval-mini")
    shown = [Sample(s.id, s.images[:1], texts=s.texts) for s in samples]
    options: dict[str, Any] = {
        "gallery": [text for s in shown for text in s.texts],
        "pairs": {s.id: np.arange(i % 3 + 1) * 2 for i, s in enumerate(shown)},
    }
    wanted = run(model, shown, "match", options, tmp_path / "cpu.jsonl")
    with simulated() as counts:
        model.place("fp32")
        counts.clear()
        found = run(model, shown, "match", options, tmp_path / "sim.jsonl")
    assert sum(counts.waits.values()) == BATCHES, counts.waits
    assert all("machine/device.py" in line for line in counts.waits), counts.waits
    for ours, theirs in zip(found.splitlines(), wanted.splitlines(), strict=True):
        a, b = (unpack(json.loads(line)["prediction"]) for line in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=1e-5)  # floats, which another kernel rounds otherwise
    assert counts.fetched


def test_the_device_has_its_next_batch_before_results_are_asked_for(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model("deit-mini")
    order: list[str] = []
    encode, everything = model.encode, Awaited._all
    model.encode = lambda images: (order.append("begin"), encode(images))[1]
    monkeypatch.setattr(Awaited, "_all", lambda this: (order.append("fetch"), everything(this))[1])
    shown = [Sample(s.id, s.images[:1], s.text) for s in samples]
    with simulated():
        model.place("fp32")
        run(model, shown, "classify", {}, tmp_path / "sim.jsonl")
    begun = [i for i, what in enumerate(order) if what == "begin"]
    first = order.index("fetch")
    assert len(begun) == BATCHES
    assert begun[1] < first < begun[2]
    monkeypatch.undo()


def test_captions_are_waited_for_once_a_step(samples: list[Sample], tmp_path: Path) -> None:
    """Eight steps at most, whatever the number of sentences and beams, and the prompt once."""
    model = open_model("blip-caption-mini")
    options = {"beams": 3, "max_length": 12, "min_length": 3, "prompt": "a picture of"}
    shown = [Sample(s.id, s.images[:1]) for s in samples]
    wanted = run(model, shown, "caption", options, tmp_path / "cpu.jsonl")
    with simulated() as counts:
        model.place("fp32")
        counts.clear()
        assert run(model, shown, "caption", options, tmp_path / "sim.jsonl") == wanted
    assert sum(counts.waits.values()) <= BATCHES * (8 + 1)


def test_awaited_predictions_look_like_a_list() -> None:
    calls: list[int] = []
    numbers = Awaited(3, [torch.arange(3)], lambda found: (calls.append(1), found.tolist())[1])
    assert len(numbers) == 3
    assert not calls
    assert (numbers[1], numbers[:2], list(numbers)) == (1, [0, 1], [0, 1, 2])
    assert numbers == [0, 1, 2]
    assert calls == [1]
