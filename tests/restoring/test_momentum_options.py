"""The options of the momentum loss: ranges, what is refused, identities, and the recipes that set it."""

from __future__ import annotations

import importlib
from typing import Any, cast

import pytest
from pydantic import ValidationError

from tests.restoring.test_momentum import WORDS, options
from vlbench.capability import Batch, Matcher
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.restoring.momentum import MomentumOptions


@pytest.mark.parametrize("word", [{"queue": 100}, {"momentum": 0.9}, {"alpha": 0.1}])
def test_its_options_have_a_meaning_with_it_only(word: dict[str, Any]) -> None:
    name = next(iter(word))
    for cls in (MomentumOptions, importlib.import_module("vlbench.methods.finetune").FinetuneOptions):
        with pytest.raises(ValidationError, match=f"{name}= has a meaning with loss=momentum only"):
            cls(**{"steps": 1, "lr": 1e-3, **word})


@pytest.mark.parametrize("word", [{"queue": 0}, {"momentum": 1.0}, {"momentum": -0.1}, {"alpha": 1.1}])
def test_ranges(word: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        options(**word)


@pytest.mark.parametrize("task", ["vqav2", "nlvr2", "coco_caption", "imagenet", "ade20k"])
@pytest.mark.parametrize("link", ["upop_search", "finetune", "mask_based_search"])
def test_tasks_without_momentum_encoders_refuse_it(task: str, link: str) -> None:
    method = "mask_based" if link == "mask_based_search" else "upop"
    with pytest.raises(UserError, match=rf"{link}\.loss=momentum: the capability \w+ has no momentum encoders"):
        resolve({"task": task, "method": method, f"{link}.loss": "momentum"})


def test_a_family_without_it_says_so() -> None:
    class Bare(Matcher):
        def embed(self, states: Any, batch: Batch) -> list[Any]:
            return []

        def match_outputs(self, batch: Batch) -> Any:
            return None

    with pytest.raises(UserError, match="Bare has no momentum encoders"):
        Bare().match_momentum(cast(Any, None), None)


def test_left_away_it_enters_no_identity() -> None:
    """The cells of the published results keep theirs."""
    for method in ("upop", "dense+finetune", "mask_based"):
        spec = resolve({"task": "coco_retrieval", "method": method})
        for link in spec.links:
            assert not {"loss", "queue", "momentum", "alpha"} & set(link.options.recorded())
    told = resolve({"task": "coco_retrieval", "method": "upop", **WORDS}).links[0].options.recorded()
    assert {k: told[k] for k in ("loss", "queue")} == {"loss": "momentum", "queue": 6}


@pytest.mark.parametrize("recipe", ["paper", "upop-code"])
@pytest.mark.parametrize("task", ["coco_retrieval", "flickr30k_retrieval", "nlvr2"])
def test_recipes_of_the_originals_train_retrieval_on_it(task: str, recipe: str) -> None:
    spec = resolve({"suite": "full", "task": task, "method": "upop", "recipe": recipe})
    wanted = "task" if task == "nlvr2" else "momentum"
    assert [link.options.loss for link in spec.links] == [wanted, wanted]
    assert all((o.queue, o.momentum, o.alpha) == (57600, 0.995, 0.4) for o in (link.options for link in spec.links))


def test_hardness_is_an_option_of_the_contrastive_loss_alone() -> None:
    with pytest.raises(ValidationError, match="hardness= has a meaning with loss=task only"):
        options(hardness=9)
    with pytest.raises(UserError, match="the capability classify has no contrastive loss"):
        resolve({"task": "imagenet", "method": "dense+finetune", "finetune.hardness": "9"})
    spec = resolve({"task": "coco_retrieval", "method": "dense+finetune", "finetune.hardness": "9"})
    assert spec.links[-1].options.recorded()["hardness"] == 9
