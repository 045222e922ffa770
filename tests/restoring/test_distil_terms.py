"""Oracle: every term of LLAVADI's published code, recorded, with its gradient; and of families, the head on the hidden
states that they tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import minis
from tests.lab import Lab
from tests.oracles import Oracle
from tests.restoring.test_distill import shifted
from tests.training.families import batch_of, open_model
from vlbench.capability import Batch, Hidden, Outputs
from vlbench.errors import UserError
from vlbench.restoring.distil_terms import (
    affinities_apart,
    contrasted_affinities,
    divergence,
    normalised,
    projector,
    states_apart,
)
from vlbench.restoring.distill import Distillation, Projected, TeacherOptions, hidden_of
from vlbench.task import Sample


@pytest.fixture
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "neighbours" / "llavadi_losses_a.npz")


def share_of(told: Tensor) -> Tensor:
    """The weight of each place of a mean over samples of the mean over their places."""
    return told / told.sum(1, keepdim=True) / len(told)


def hidden(oracle: Oracle, whose: str) -> list[Hidden]:
    facts, labels = oracle.facts, oracle["labels"]
    shown = torch.zeros_like(labels, dtype=torch.bool)
    shown[:, facts["image_at"] : facts["image_at"] + facts["image_tokens"]] = True
    states = oracle[f"{whose}_hidden"].clone().requires_grad_(whose == "student")
    return [Hidden(states, labels != -100, oracle["attention_mask"].bool(), shown)]


def assert_equal(oracle: Oracle, name: str, loss: Tensor, leaf: Tensor, of: str) -> None:
    loss.backward()
    assert torch.allclose(loss.detach(), oracle[f"loss/{name}"], rtol=0, atol=1e-10)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, oracle[f"grad_{of}/{name}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "direction", "places", "normal"),
    [
        ("kl_answer", "forward", "answer", False), ("kl_all", "forward", "all", False),
        ("kl_answer_norm", "forward", "answer", True), ("reverse", "reverse", "answer", False),
        ("jsd", "jsd", "answer", False), ("mse", "mse", "answer", False),
    ],
)  # fmt: skip
def test_logits(oracle: Oracle, name: str, direction: Any, places: str, normal: bool) -> None:
    student = oracle["student_logits"].clone().requires_grad_()
    counted = oracle["labels"] != -100 if places == "answer" else oracle["attention_mask"].bool()
    pair = [x.transpose(1, 2) for x in (oracle["teacher_logits"], student)]
    pair = [normalised(x) for x in pair] if normal else pair
    assert_equal(oracle, name, divergence(*pair, share_of(counted.double()), 1.0, direction), student, "logits")


def projected(oracle: Oracle) -> nn.Module:
    layers = projector(5, 7).double()
    layers.load_state_dict(oracle.tensors("projector/"))
    return layers


@pytest.mark.parametrize("places", ["answer", "all"])
def test_hidden_states(oracle: Oracle, places: Any) -> None:
    student = hidden(oracle, "student")
    loss = states_apart(hidden(oracle, "teacher"), student, places, projected(oracle))
    assert_equal(oracle, f"hidden_{places}", loss, student[0].states, "hidden")
    with pytest.raises(UserError, match="5 wide and the teacher's 7: give kd_projector=mlp"):
        states_apart(hidden(oracle, "teacher"), student, places)


@pytest.mark.parametrize(("name", "loss"), [("affinity", affinities_apart), ("contrastive", contrasted_affinities)])
def test_affinities(oracle: Oracle, name: str, loss: Any) -> None:
    student = hidden(oracle, "student")
    assert_equal(oracle, name, loss(hidden(oracle, "teacher"), student), student[0].states, "hidden")
    parts = [
        [Hidden(*(x[i : i + 1] for x in whole[0])) for i in (0, 1)] for whole in (hidden(oracle, "teacher"), student)
    ]
    assert torch.allclose(loss(*parts).detach(), oracle[f"loss/{name}"], rtol=0, atol=1e-10)  # rows of other lengths
    unseen = [student[0]._replace(image=torch.zeros_like(student[0].image))]
    with pytest.raises(UserError, match="this model has none"):
        loss(hidden(oracle, "teacher"), unseen)


def test_the_last_script(oracle: Oracle) -> None:
    """Normalised logits and hidden states of all places, weights 1, through the loss that training takes."""
    leaf = oracle["student_logits"].clone().requires_grad_()
    weight = share_of(oracle["attention_mask"].double())

    def said(logits: Tensor, whose: str) -> Outputs:
        return Outputs(lambda: torch.zeros(()), [(logits.transpose(1, 2), weight)], lambda: hidden(oracle, whose))

    options = TeacherOptions(
        steps=1, lr=1, loss="kd", temperature=1, kd_normalise=True, kd_hidden=1, kd_projector="mlp"
    )
    models: dict[Any, Outputs] = {"t": said(oracle["teacher_logits"], "teacher"), "s": said(leaf, "student")}
    teacher: Any = "t"
    distillation = Distillation(teacher, "answer", 1.0, 1.0, options)
    distillation.capability.outputs = lambda model, batch: models[model]  # type: ignore[method-assign]
    distillation.project = projected(oracle)
    student, nothing = ("s", None)  # type: Any, Any
    assert_equal(oracle, "final", distillation(student, nothing), leaf, "logits")


def outputs_of(name: str) -> tuple[Any, Batch, Outputs]:
    if name.startswith("blip"):
        model = open_model(name)
        batch = batch_of(model)
    else:
        model = minis.opened(name)
        samples = [Sample(str(i), (), "what is it ?", {"red": 1.0, "a blue circle": 0.5}) for i in range(2)]
        size = model.card.image.size
        batch = Batch(samples, torch.randn(2, 3, size, size), torch.tensor([[0], [1]]))
    model.net.eval()
    return model, batch, model.answer_outputs(batch)


@pytest.mark.parametrize(("name", "head"), [("blip-vqa-mini", "text_decoder.cls"), ("llava-mini", "lm_head")])
def test_the_head_on_hidden_states_gives_the_logits(name: str, head: str) -> None:
    model, _, outputs = outputs_of(name)
    assert model.tells_hidden
    found = [model.net.get_submodule(head)(part.states[part.learnt]) for part in hidden_of(outputs, model)]
    logits = [part.movedim(1, -1).flatten(0, -2) for part, _ in outputs.logits]
    assert torch.allclose(torch.cat(found), torch.cat(logits), atol=1e-5)
    assert any(part.image.any() for part in hidden_of(outputs, model)) == (name == "llava-mini")


def test_the_projector_trains_with_the_student_and_is_kept() -> None:
    student = open_model("blip-vqa-mini")
    teacher = shifted(student)
    batch = batch_of(student)
    options = TeacherOptions(steps=1, lr=1, loss="kd", kd="off", kd_hidden=2.0, kd_projector="mlp")
    made = [Projected(Distillation(teacher, "answer", 1.0, 2.0, options), student, batch, 3) for _ in range(2)]
    loss = made[0](batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for own in made[0].own() for p in own.parameters)
    with torch.no_grad():
        made[0].layers[0].weight.add_(1.0)
    assert not torch.equal(made[0].layers[0].weight, made[1].layers[0].weight)
    made[1].restore({name: value.clone() for name, value in made[0].state().items()})
    assert torch.equal(made[0].layers[0].weight, made[1].layers[0].weight)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("kd=jsd", "kd= has a meaning with loss=kd or loss=both only"),
        ("loss=kd kd_places=answer", "kd_places= has a meaning with kd_hidden= only"),
        ("loss=kd kd_affinity_loss=contrastive", "kd_affinity_loss= has a meaning with kd_affinity= only"),
        ("loss=kd kd=off", "kd=off leaves nothing to distil"),
        ("loss=kd kd_hidden=1", "kd_hidden= compares hidden states, which the family of deit-mini does not tell"),
    ],
)
def test_what_has_no_meaning_is_refused(lab: Lab, words: str, sentence: str) -> None:
    assert re.search(re.escape(sentence), lab.refused_run("method=magnitude+finetune", "sparsity=0.5", *words.split()))


def test_defaults_enter_no_identity() -> None:
    assert not any(name.startswith("kd") for name in TeacherOptions(steps=1, lr=1).recorded())
