"""Distillation: the formula on logits by hand, and of every family nothing that is padding."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.families import FAMILIES, batch_of, capability, loss, open_model
from vlbench.capability import Batch
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.job import Job, Surroundings
from vlbench.restoring.distill import Distillation, divergence


def outputs(model: Any, batch: Batch) -> Any:
    return getattr(model, capability(model) + "_outputs")(batch)


def shifted(model: Any, seed: int = 1) -> Any:
    """A copy with other weights."""
    other = deepcopy(model)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.02)
    return other


def pair(name: str) -> tuple[Any, Any]:
    teacher = open_model(name)
    student = shifted(teacher)
    teacher.net.eval().requires_grad_(False)
    student.net.eval()
    return teacher, student


def test_the_divergence_is_hintons_by_hand() -> None:
    """Two places of three classes, the second weighing three times the first, at temperature 2."""
    teacher = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0]])
    student = torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]])
    expected = 0.0
    for row, weight in enumerate((0.25, 0.75)):
        p = torch.exp(teacher[row] / 2) / torch.exp(teacher[row] / 2).sum()
        q = torch.exp(student[row] / 2) / torch.exp(student[row] / 2).sum()
        expected += weight * float((p * (p / q).log()).sum())
    weights = torch.tensor([0.25, 0.75])
    assert float(divergence(teacher, student, weights, 2.0)) == pytest.approx(expected, rel=1e-6)
    assert float(divergence(teacher, student, 0.5, 1.0)) != pytest.approx(expected, rel=0.1)
    # Places behind the classes: (R, classes, places).
    folded = teacher.t()[None], student.t()[None], weights[None]
    assert float(divergence(*folded, 2.0)) == pytest.approx(expected, rel=1e-6)
    assert divergence(teacher.bfloat16(), student.bfloat16(), 1.0, 2.0).dtype == torch.float32


@pytest.mark.parametrize("name", FAMILIES)
def test_both_is_the_weighted_sum_of_the_tasks_loss_and_kd(name: str) -> None:
    """w * T^2 * KL + (1 - w) * task, from one forward of the student."""
    teacher, student = pair(name)
    batch = batch_of(student)
    kind = capability(student)
    calls: list[int] = []
    encode = student.encode
    student.encode = lambda images: (calls.append(1), encode(images))[1]
    torch.manual_seed(0)  # BLIP's retrieval draws negatives
    task = loss(student, batch).item()
    with torch.no_grad():
        wanted, had = outputs(teacher, batch).logits, outputs(student, batch).logits
        kl = sum(divergence(a, b, w, 3.0) for (a, _), (b, w) in zip(wanted, had, strict=True))
    calls.clear()
    torch.manual_seed(0)
    both = Distillation(teacher, kind, 0.3, 3.0)(student, batch)
    both.backward()
    assert len(calls) == 1
    assert both.item() == pytest.approx(0.7 * task + 0.3 * 9 * float(kl), rel=1e-5)
    assert float(Distillation(teacher, kind, 1.0, 3.0)(student, batch).detach()) == pytest.approx(
        9 * float(kl), rel=1e-5
    )
    torch.manual_seed(0)
    assert float(Distillation(teacher, kind, 0.0, 3.0)(student, batch).detach()) == pytest.approx(task, rel=1e-5)
    assert all(p.grad is None for p in teacher.net.parameters())
    assert any(p.grad is not None for p in student.net.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name: str) -> None:
    teacher = open_model(name)
    teacher.net.eval()
    found = Distillation(teacher, capability(teacher), 1.0, 2.0)(teacher, batch_of(teacher))
    assert found.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_the_tasks_loss(name: str) -> None:
    """The mean of a capability over its places weighs 1 in all; VQA's answers weigh what annotators gave them, token by
    token."""
    model = open_model(name)
    model.net.eval()
    batch = batch_of(model)
    total = 0.0
    for logits, weight in outputs(model, batch).logits:
        places = logits[:, 0]
        assert torch.is_tensor(weight) is False or weight.expand_as(places).shape == places.shape
        total += float((torch.zeros_like(places) + weight).sum())
    if capability(model) == "answer":
        pairs = [(answer, w) for s in batch.samples for answer, w in s.target.items()]
        tokens = [len(ids) - 1 for ids in model.candidate_ids([answer for answer, _ in pairs])]
        assert total == pytest.approx(sum(w * n for (_, w), n in zip(pairs, tokens, strict=True)) / len(batch.samples))
    else:
        assert total == pytest.approx(1.0, rel=1e-5)


def alone(batch: Batch, row: int) -> Batch:
    """One sample with its images."""
    used, owner = batch.owner[row : row + 1].unique(return_inverse=True)
    maps = None if batch.maps is None else batch.maps[row : row + 1]
    return replace(batch, samples=[batch.samples[row]], images=batch.images[used], owner=owner, maps=maps)


@pytest.mark.parametrize(
    "name", ["segmenter-mini", "blip-vqa-mini", "blip-nlvr-mini", "blip-caption-mini", "deit-mini"]
)
def test_padding_counts_in_nothing(name: str) -> None:
    """The divergence of a batch is the mean of its samples' own, which alone have nothing to be padded to; weighted by
    the tokens or pixels that are told of each."""
    teacher, student = pair(name)
    batch = batch_of(student)
    kind = capability(student)
    distillation = Distillation(teacher, kind, 1.0, 2.0)
    count = getattr(student, kind + "_terms", lambda part: len(part.samples))
    parts = [alone(batch, row) for row in range(len(batch.samples))]
    terms = [count(part) for part in parts]
    with torch.no_grad():
        own = [float(distillation(student, part)) * n for part, n in zip(parts, terms, strict=True) if n]
        assert float(distillation(student, batch)) == pytest.approx(sum(own) / sum(terms), rel=1e-4)


def test_pixels_without_a_class_count_in_nothing() -> None:
    student = open_model("segmenter-mini")
    batch = batch_of(student)
    assert batch.maps is not None
    told = batch.maps != 255
    (logits, weight) = outputs(student, batch).logits[0]
    assert isinstance(weight, Tensor)
    assert torch.equal(weight > 0, told)
    assert logits.shape[:1] + logits.shape[2:] == told.shape


def test_models_of_other_classes_are_refused() -> None:
    teacher, student = pair("deit-mini")
    student.net.head = torch.nn.Linear(64, 7)
    student.classes = student.classes[:7]
    with pytest.raises(UserError, match="do not tell the same classes"):
        Distillation(teacher, "classify", 1.0, 1.0)(student, batch_of(student))


def words(**more: str) -> dict[str, str]:
    return {"task": "imagenet", "method": "dense+finetune", **more}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kd_weight": "0.3"}, "kd_weight= has a meaning with loss=both only"),
        ({"loss": "kd", "kd_weight": "0.3"}, "kd_weight= has a meaning with loss=both only"),
        ({"temperature": "3"}, "temperature= has a meaning with loss=kd or loss=both only"),
        ({"loss": "both", "kd_weight": "1.5"}, "less than or equal to 1"),
        ({"loss": "both", "temperature": "0"}, "greater than 0"),
    ],
)
def test_options_without_a_meaning_are_refused(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve(words(**given))


def test_options_at_their_defaults_enter_no_identity() -> None:
    told = resolve(words()).links[1].options.recorded()
    assert not {"loss", "kd_weight", "temperature", "tune", "optimiser", "accumulate", "checkpointing"} & set(told)
    assert resolve(words(loss="both")).links[1].options.recorded()["loss"] == "both"


def test_the_teacher_is_made_once_and_frozen() -> None:
    made: list[Any] = []

    def dense() -> Any:
        made.append(open_model("deit-mini"))
        return made[-1]

    nothing: Any = None
    task: Any = SimpleNamespace()
    model = open_model("deit-mini")
    job = Job(model, task, nothing, Surroundings(0, nothing), dense=dense)
    assert job.teacher() is job.teacher() is made[0]
    assert len(made) == 1
    assert not made[0].net.training
    assert not any(p.requires_grad for p in made[0].net.parameters())
    assert all(p.requires_grad for p in model.net.parameters())
    with pytest.raises(UserError, match="no dense model to distil from"):
        Job(model, task, nothing, Surroundings(0, nothing)).teacher()
