"""A target spread over towers, by either budget, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.pruning.toy import random_blocks
from vlbench.errors import UserError
from vlbench.pruning.modality import collapsed, tower_ratios
from vlbench.pruning.options import CalibratedOptions, ScoreOptions
from vlbench.structure import Structure


def model() -> Structure:
    """vision: 1 part in 4 of the prunable set; question 1, answer 2."""
    return random_blocks((16, 8), (16, 8), (16, 8), (16, 8), towers={"vision": 1, "question": 1, "answer": 2})[1]


def ratios(**words: Any) -> dict[str, float]:
    found = tower_ratios(model(), ScoreOptions.model_validate(words))
    return {name: round(ratio, 6) for name, ratio in found.items()}


def test_without_words_all_towers_get_the_target() -> None:
    assert ratios(sparsity=0.3) == {"vision": 0.3, "question": 0.3, "answer": 0.3}


def test_all_named_towers_get_what_they_are_told() -> None:
    """By modality, by name, and a tower's name before its modality's."""
    assert ratios(vision=0.5, language=0.7) == {"vision": 0.5, "question": 0.7, "answer": 0.7}
    assert ratios(vision=0.5, language=0.7, towers="answer:0.1", sparsity=0.35) == {
        "vision": 0.5, "question": 0.7, "answer": 0.1,
    }  # fmt: skip


def test_the_rest_comes_from_the_budget() -> None:
    """parameters: 0.25 * 0.2 + 0.75 * r = 0.5; ratio: (0.2 + r + r) / 3 = 0.5."""
    assert ratios(sparsity=0.5, vision=0.2) == {"vision": 0.2, "question": 0.6, "answer": 0.6}
    assert ratios(sparsity=0.5, vision=0.2, budget="ratio") == {"vision": 0.2, "question": 0.65, "answer": 0.65}


def test_a_tower_by_its_own_name_alone() -> None:
    """0.25 * 0.2 + 0.75 * r = 0.5 for vision and answer."""
    assert ratios(sparsity=0.5, towers="question:0.2") == {"vision": 0.6, "question": 0.2, "answer": 0.6}


def test_language_alone_in_both_senses() -> None:
    """A target of the whole, or of the towers that are pruned."""
    assert ratios(sparsity=0.6, vision=0) == {"vision": 0, "question": 0.8, "answer": 0.8}
    assert ratios(sparsity=0.6, vision=0, budget="ratio") == {"vision": 0, "question": 0.6, "answer": 0.6}


def test_n_m_may_leave_a_tower_out_and_nothing_else() -> None:
    assert ratios(sparsity="2:4", vision=0) == {"vision": 0, "question": 0.5, "answer": 0.5}
    with pytest.raises(ValidationError, match="one ratio everywhere: give vision=0 to leave a tower out"):
        ratios(sparsity="2:4", vision=0.5)
    with pytest.raises(ValidationError, match="one ratio everywhere and no allocation=ecoflap"):
        CalibratedOptions.model_validate({"sparsity": "2:4", "allocation": "ecoflap"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"sparsity": 0.9, "vision": 0}, "asks question, answer for 120% of what is there"),
        ({"sparsity": 0.1, "language": 0.9}, "asks vision for -230% of what is there"),
        ({"towers": "anser:0.5"}, r"no tower 'anser'. Its towers: vision \(vision\), question \(language\)"),
        ({"sparsity": 0.5, "vision": 0.5, "language": 0.7}, r"removes 0.65 of the prunable set \(mean ratio 0.6333\)"),
        ({"vision": 0, "language": 0}, "removes 0 of the prunable set"),
    ],
)
def test_what_cannot_be_is_told(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ratios(**words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"towers": "answer"}, "'answer' should be a tower and its ratio"),
        ({"towers": "answer:1.2"}, "should be a tower and its ratio"),
        ({"towers": "answer:0.1,answer:0.2"}, "answer is given twice"),
        ({"vision": 1}, "less than 1"),
        ({"group": "model", "vision": 0.5}, "group=model lets one ranking share the target out"),
        ({"allocation": "global", "group": "row"}, "allocation=global is group=model"),
        ({"pattern": "structured", "sparsity": "2:4"}, "pattern=structured cuts units and cannot make n:m"),
    ],
)
def test_words_that_contradict_each_other(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ScoreOptions.model_validate(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"group": "tower"}, "group=tower ranks after all blocks were seen: add propagate=dense"),
        ({"allocation": "ecoflap", "vision": 0.5}, "sets the ratios of all towers"),
        ({"allocation": "ecoflap", "group": "model", "propagate": "dense"}, "group=model ranks over the blocks"),
    ],
)
def test_calibrated_words_that_contradict_each_other(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        CalibratedOptions.model_validate(words)


def test_global_is_a_group_and_the_target_without_one_is_the_mean() -> None:
    assert ScoreOptions.model_validate({"allocation": "global"}).group == "model"
    assert ScoreOptions.model_validate({"vision": "0.5", "language": "0.7"}).sparsity == 0.6
    assert ScoreOptions.model_validate({"vision": "0.5", "ratio": "4x"}).sparsity == 0.75


def test_an_empty_tower_is_a_collapse() -> None:
    assert collapsed({"vision": 0.5, "answer": 0.99}) == ["answer"]
