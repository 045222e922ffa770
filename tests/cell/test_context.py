"""What a recipe is told, of declarations that the test writes: the task's word, and over it the model's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vlbench.cell.context import context_of
from vlbench.plugins.table import table


def model(**training: Any) -> Any:
    return SimpleNamespace(facts={"training": training})


def test_the_models_word_stands_over_the_tasks() -> None:
    """NLVR2 and a CLIP-like card both say something of UPop; what the card leaves out stays the task's."""
    task = table("tasks").get("nlvr2").facts["training"]["upop"]
    context = context_of("full", "nlvr2", model(upop={"lr": 1.0, "weight_decay": 0.2}, other={"a": 1}), 0.5)
    assert context.says("upop") == {**task, "lr": 1.0, "weight_decay": 0.2}
    assert task["lr"] != 1.0, "the task's own declaration is not changed"
    assert context.says("other") == {"a": 1}
    assert context.says("of nobody") == {}


def test_whether_samples_have_texts_is_the_capabilitys_word() -> None:
    assert {name: context_of("mini", name, None, None).texts for name in ("imagenet", "ade20k", "vqav2", "nlvr2")} == {
        "imagenet": False, "ade20k": False, "vqav2": True, "nlvr2": True,
    }  # fmt: skip


def test_a_task_that_is_not_there_says_nothing() -> None:
    context = context_of("full", "no such task", None, None)
    assert (context.texts, context.training) == (True, {})


def test_cards_that_publications_train_otherwise_say_so() -> None:
    """CLIP in UPop decays by 0.2, Vicuna in RESSA takes batches of 32: what recipes asked names for before."""
    models = table("models").entries
    decays = {n for n, e in models.items() if context_of("full", "", e, None).says("upop").get("weight_decay") == 0.2}
    batches = {n for n, e in models.items() if context_of("full", "", e, None).says("ressa").get("batch") == 32}
    assert decays == {"clip-mini", "clip-vit-b16", "clip-vit-l14-336"}
    assert batches == {"instructblip-vicuna-7b", "instructblip-vicuna-13b"}
