"""The evaluation loop: memory that runs out, images that do not decode, models that raise, runs that are killed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vlbench.capability import Batch
from vlbench.errors import RunFailed, UserError
from vlbench.evaluation import loop as module
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.images.spec import ImageSpec
from vlbench.model import Card, Model
from vlbench.task import Sample, Task

SPEC = ImageSpec(4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Grey:
    """A model that says how grey an image is. `rule(samples)` may raise; `sizes` are the batches it was given."""

    def __init__(self, rule: Callable[[Sequence[Sample]], None] = lambda samples: None) -> None:
        self.card = Card("grey", "", ("answer",), "", SPEC)
        self.net, self.rule = nn.Linear(1, 1), rule
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.sizes: list[int] = []
        self.decoded: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        self.decoded.append(len(images))
        return images.mean((1, 2, 3))

    def answer(self, states: Tensor, batch: Batch) -> list[dict[str, Any]]:
        self.sizes.append(len(batch.samples))
        self.rule(batch.samples)
        return [{"grey": round(float(states[o]) * 255)} for o in batch.owner[:, 0]]


class Equal:
    """A task: is the grey that of the file's name?"""

    capability = "answer"

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> float:
        return float(prediction["grey"] == int(sample.images[0].stem))

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[float]:
        return [self.score(s, p) for s, p in zip(samples, predictions, strict=True)]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """32 questions about 16 images, in an order that is not the plan's."""
    (tmp_path / "images").mkdir()
    for i in range(16):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
    return [
        Sample(f"{i:02}.{j}", (tmp_path / "images" / f"{i}.png",), text="word " * (i % 3 + 1))
        for j in range(2)
        for i in range(16)
    ]


def evaluator(model: Grey, task: Any = None, **more: Any) -> Evaluator:
    return Evaluator(
        cast(Model, model), cast(Task, task or Equal()), ImageStore(SPEC),
        settings={"labelled": True}, batch_size=8, **more,
    )  # fmt: skip


def book(tmp_path: Path, name: str = "predictions") -> Predictions:
    return Predictions(tmp_path / f"{name}.jsonl")


def out_of_memory(limit: int, error: type[Exception] | Exception = torch.OutOfMemoryError) -> Callable[..., None]:
    def rule(samples: Sequence[Sample]) -> None:
        if len(samples) > limit:
            raise error

    return rule


def statuses(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["id"]: line["status"] for line in lines}


def test_dropout_is_off(tmp_path: Path, samples: list[Sample]) -> None:
    modes: list[bool] = []
    model = Grey(lambda _: modes.append(model.net.training))
    model.net.train()
    evaluator(model).run(samples, book(tmp_path))
    assert modes == [False] * 4


def test_every_sample_is_answered_and_every_image_encoded_once(tmp_path: Path, samples: list[Sample]) -> None:
    model, told = Grey(), list[tuple[int, int, str]]()
    loop = evaluator(model, progress=lambda *row: told.append(row))
    lines = loop.run(samples, book(tmp_path))
    assert [line["id"] for line in lines] == [s.id for s in samples]
    assert all(line["score"] == 1.0 and line["status"] == "ok" for line in lines)
    assert (model.sizes, sum(model.decoded)) == ([8, 8, 8, 8], 16)
    assert told[-1] == (32, 32, "")
    assert not loop.backed_off
    assert set(loop.phases) == {"decode", "transfer", "encode", "predict", "write", "score"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError,
        MemoryError,
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_batch_once_and_for_all(tmp_path: Path, samples: list[Sample], error: Any) -> None:
    plain = evaluator(Grey()).run(samples, book(tmp_path, "plain"))
    model = Grey(out_of_memory(3, error))
    loop = evaluator(model)
    assert loop.run(samples, book(tmp_path)) == plain
    assert loop.backed_off
    assert model.sizes == [8, 4] + [2] * 16
    assert (tmp_path / "predictions.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_memory_that_runs_out_late_keeps_what_was_done(tmp_path: Path, samples: list[Sample]) -> None:
    calls = [0]

    def rule(rows: Sequence[Sample]) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError

    model = Grey(rule)
    evaluator(model).run(samples, book(tmp_path))
    assert model.sizes == [8, 8, 8, 4, 4, 4, 4]


def test_a_resumed_run_keeps_the_smaller_batch_and_says_so(tmp_path: Path, samples: list[Sample]) -> None:
    calls = [0]

    def rule(rows: Sequence[Sample]) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        out_of_memory(4)(rows)

    with pytest.raises(KeyboardInterrupt):
        evaluator(Grey(rule)).run(samples, book(tmp_path))
    model = Grey()
    loop = evaluator(model)
    loop.run(samples, book(tmp_path))
    assert model.sizes == [4] * 6
    assert loop.backed_off


def test_one_sample_that_does_not_fit_ends_the_run(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(RunFailed, match="one sample does not fit into memory"):
        evaluator(Grey(out_of_memory(0))).run(samples, book(tmp_path))


def test_the_next_attempt_has_the_failed_ones_memory(tmp_path: Path, samples: list[Sample]) -> None:
    """A traceback that is still handled would hold the failed batch, and the smaller one would not fit either."""
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    class Big(Grey):
        def encode(self, images: Tensor) -> Tensor:
            gc.disable()
            alive.extend(old() is not None for old in held)
            state = super().encode(images)
            if len(images) > 1:
                held.append(weakref.ref(state))
                try:
                    raise ValueError("a cause holds frames as well")
                except ValueError as cause:
                    raise torch.OutOfMemoryError from cause
            return state

    try:
        evaluator(Big()).run(samples, book(tmp_path))
    finally:
        gc.enable()
    assert len(held) == 2
    assert not any(alive)


def test_an_image_that_does_not_decode_is_an_error_and_named(tmp_path: Path, samples: list[Sample]) -> None:
    broken, missing = samples[3].images[0], samples[5].images[0]
    broken.write_bytes(broken.read_bytes()[:50])
    missing.unlink()
    lines = {line["id"]: line for line in evaluator(Grey()).run(samples, book(tmp_path))}
    wrong = [k for k, line in lines.items() if line["status"] != "ok"]
    assert sorted(wrong) == ["03.0", "03.1", "05.0", "05.1"]
    assert lines["03.0"]["error"].startswith(f"{broken} does not decode")
    assert lines["05.1"]["error"] == f"{missing} does not exist"
    assert lines["03.0"]["score"] is None
    assert all(lines[s.id]["score"] == 1.0 for s in samples if s.id not in wrong)


def test_mended_and_resumed_a_failed_sample_is_answered(tmp_path: Path, samples: list[Sample]) -> None:
    file = samples[3].images[0]
    data = file.read_bytes()
    file.write_bytes(data[:50])

    class Stopped(Predictions):
        def finish(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(Grey()).run(samples, Stopped(tmp_path / "predictions.jsonl"))
    file.write_bytes(data)
    model = Grey()
    lines = evaluator(model).run(samples, book(tmp_path))
    assert set(statuses(lines).values()) == {"ok"}
    assert model.sizes == [8]


def test_a_data_set_that_is_not_there_ends_the_run_soon(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for sample in samples[:16]:
        sample.images[0].unlink()
    monkeypatch.setattr(module, "MAX_ERRORS", 10)
    with pytest.raises(RunFailed, match=r"10 samples failed, the last one .* with: .*\.png does not exist"):
        evaluator(Grey()).run(samples, book(tmp_path))


def test_a_sample_that_raises_is_an_error_and_the_others_are_not(tmp_path: Path, samples: list[Sample]) -> None:
    def rule(rows: Sequence[Sample]) -> None:
        if any(s.id == "07.1" for s in rows):
            raise ValueError("cannot say\nmore")

    lines = evaluator(Grey(rule)).run(samples, book(tmp_path))
    (wrong,) = (line for line in lines if line["status"] != "ok")
    assert wrong["id"] == "07.1"
    assert wrong["error"].startswith("ValueError: cannot say (test_loop.py, line ")
    assert sum(line["score"] == 1.0 for line in lines) == 31


def test_a_program_that_is_wrong_ends_the_run_within_a_few_attempts(tmp_path: Path, samples: list[Sample]) -> None:
    def rule(rows: Sequence[Sample]) -> None:
        raise AttributeError("no such thing")

    model = Grey(rule)
    with pytest.raises(
        RunFailed, match=r"grey fails on every sample .*: AttributeError: no such thing \(test_loop\.py"
    ):
        evaluator(model).run(samples, book(tmp_path))
    assert len(model.sizes) <= 30
    assert not (tmp_path / "predictions.jsonl").exists()


def test_a_program_that_is_wrong_for_long_texts_ends_the_run(tmp_path: Path, samples: list[Sample]) -> None:
    """After ten samples that went well."""

    def rule(rows: Sequence[Sample]) -> None:
        if any(len(s.text.split()) > 1 for s in rows):
            raise IndexError("position 2")

    with pytest.raises(RunFailed, match="IndexError: position 2"):
        evaluator(Grey(rule)).run(samples, book(tmp_path))


def test_failures_between_successes_are_the_samples_own(tmp_path: Path, samples: list[Sample]) -> None:
    """However many."""

    def rule(rows: Sequence[Sample]) -> None:
        if any(s.id.endswith(".0") for s in rows):
            raise ValueError("this question")

    lines = evaluator(Grey(rule)).run(samples, book(tmp_path))
    assert list(statuses(lines).values()) == ["error"] * 16 + ["ok"] * 16


def test_one_image_with_many_questions_is_no_systematic_failure(tmp_path: Path, samples: list[Sample]) -> None:
    many = [Sample(f"x.{i}", samples[0].images, text="word") for i in range(20)]

    def rule(rows: Sequence[Sample]) -> None:
        if any(s.id.startswith("x.") for s in rows):
            raise ValueError("this image")

    lines = evaluator(Grey(rule)).run([*many, *samples[1:16]], book(tmp_path))
    assert list(statuses(lines).values()) == ["error"] * 20 + ["ok"] * 15


@pytest.mark.parametrize("error", [UserError("give candidates="), RunFailed("the weights are damaged")])
def test_a_sentence_for_the_user_is_passed_on_at_once(tmp_path: Path, samples: list[Sample], error: Exception) -> None:
    def rule(rows: Sequence[Sample]) -> None:
        raise error

    model = Grey(rule)
    with pytest.raises(type(error), match=str(error)):
        evaluator(model).run(samples, book(tmp_path))
    assert model.sizes == [8]


def test_a_model_that_forgets_samples_is_told(tmp_path: Path, samples: list[Sample]) -> None:
    class Forgetful(Grey):
        def answer(self, states: Tensor, batch: Batch) -> list[dict[str, Any]]:
            return super().answer(states, batch)[1:]

    with pytest.raises(RunFailed, match=r"grey\.answer gave 7 predictions for 8 samples"):
        evaluator(Forgetful()).run(samples, book(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), torch.ones(1)])
def test_a_score_that_json_cannot_say_is_an_error_of_its_sample(
    tmp_path: Path, samples: list[Sample], value: Any
) -> None:
    class Odd(Equal):
        def score(self, sample: Sample, prediction: Mapping[str, Any]) -> float:
            return cast(float, value) if sample.id == "02.0" else 1.0

    lines = evaluator(Grey(), Odd()).run(samples, book(tmp_path))
    assert [k for k, status in statuses(lines).items() if status == "error"] == ["02.0"]


def test_a_sample_whose_score_cannot_be_had_is_an_error_and_the_others_are_kept(
    tmp_path: Path, samples: list[Sample]
) -> None:
    """A label map two pixels wider than its picture ended the cell after its inference."""

    class Odd(Equal):
        scores = Task.scores

        def score(self, sample: Sample, prediction: Mapping[str, Any]) -> float:
            if sample.id == "02.0":
                raise UserError("02.png and the prediction are of 4 x 6 and 4 x 4 pixels")
            return 1.0

    lines = evaluator(Grey(), Odd()).run(samples, book(tmp_path))
    (bad,) = [line for line in lines if line["status"] == "error"]
    assert bad["id"] == "02.0"
    assert "4 x 6 and 4 x 4" in bad["error"]


def test_a_split_without_labels_has_no_scores(tmp_path: Path, samples: list[Sample]) -> None:
    loop = evaluator(Grey())
    loop.settings["labelled"] = False
    assert {line["score"] for line in loop.run(samples, book(tmp_path))} == {None}


def test_killed_after_any_batch_the_file_is_the_same(tmp_path: Path, samples: list[Sample]) -> None:
    evaluator(Grey()).run(samples, book(tmp_path, "calm"))
    for kill in range(1, 5):
        calls = [0]

        def rule(rows: Sequence[Sample], calls: list[int] = calls, kill: int = kill) -> None:
            calls[0] += 1
            if calls[0] == kill:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluator(Grey(rule)).run(samples, book(tmp_path, str(kill)))
        model = Grey()
        evaluator(model).run(samples, book(tmp_path, str(kill)))
        assert len(model.sizes) == 4 - (kill - 1)
        assert (tmp_path / f"{kill}.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
