"""Words -> spec: the oracle is the list of mistakes in the issue, each with the sentence that has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import method_file
from vlbench.cell.resolve import resolve
from vlbench.cell.spec import Spec
from vlbench.cell.words import parse
from vlbench.errors import UserError
from vlbench.plugins.table import forget


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No workspace but the test's own."""
    monkeypatch.chdir(tmp_path)
    forget()
    yield
    forget()


def spec(text: str) -> Spec:
    return resolve(parse(text.split()))


def refusal(text: str) -> list[str]:
    with pytest.raises(UserError) as told:
        spec(text)
    assert told.value.exit_code == 2
    return str(told.value).split("\n")


def options(text: str) -> dict[str, dict[str, object]]:
    return {link.entry.name: link.options.model_dump() for link in spec(text).links}


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("method=magnitude", "task= is missing. Known: ade20k"),
        ("task=vqa", "there is no task 'vqa'. Did you mean 'vqav2'?"),
        ("task=imagenet method=upopp", "there is no method 'upopp'. Did you mean 'upop'?"),
        ("task=imagenet method=", "method= is empty: write one method, or several with a +"),
        ("task=imagenet model=deit-smal", "there is no model 'deit-smal'. Did you mean 'deit-small'?"),
        ("task=imagenet suite=ful", "suite=ful should be 'mini' or 'full'."),
        ("task=imagenet seed=x", "seed=x should be a valid integer"),
        ("task=imagenet seed=-1", "seed=-1 should be greater than or equal to 0."),
        ("task=imagenet limit=-5", "limit=-5 should be greater than or equal to 0."),
        ("task=imagenet precision=fp16", "precision=fp16 should be 'fp32' or 'bf16'."),
        ("task=imagenet label=a/b", "label=a/b: string should match pattern"),
        ("task=imagenet splitt=val", "splitt= is not known here. Did you mean 'split'?"),
        ("task=imagenet split=tset", "split=tset is none of task=imagenet."),
        ("task=vqav2 split=tset-dev", "split=tset-dev is none of task=vqav2. Did you mean 'test-dev'?"),
        ("task=vqav2 decoding=rang", "decoding=rang should be 'rank' or 'generate'."),
        ("task=vqav2 k_test=0", "k_test=0 should be greater than or equal to 1."),
        ("task=imagenet k_test=5", "k_test= is not known here."),
        ("task=imagenet method=magnitude sparsty=0.5", "sparsty= is not known here. Did you mean 'sparsity'?"),
        ("task=imagenet method=magnitude sparsity=1.5", "magnitude.sparsity=1.5 should be above 0 and below 1"),
        ("task=imagenet method=magnitude sparsity=0", "magnitude.sparsity=0 should be above 0"),
        ("task=imagenet method=magnitude sparsity=nan", "magnitude.sparsity=nan should be above 0"),
        ("task=imagenet method=magnitude sparsity=half", "magnitude.sparsity=half should be a fraction like 0.5"),
        ("task=imagenet method=magnitude sparsity=4:4", "magnitude.sparsity=4:4 should be n:m with 0 < n < m"),
        ("task=imagenet method=magnitude ratio=1x", "magnitude: ratio=1x should be a number above 1, like 2x."),
        ("task=imagenet method=magnitude ratio=2x sparsity=0.5", "magnitude: give sparsity= or ratio=, not both."),
        (
            "task=imagenet method=magnitude group=rows",
            "magnitude.group=rows should be 'row', 'matrix', 'tower', 'model' or 'code'."
        ),
        ("task=imagenet method=uniform sparsity=2:4", "sparsity=2:4 is a pattern of single weights, and uniform"),
        ("task=imagenet method=upop sparsity=2:4", "or use magnitude"),
        ("task=imagenet method=uniform multiple_of=0", "uniform.multiple_of=0 should be greater than or equal to 1."),
        ("task=imagenet method=upop finetune.steps=-3", "finetune.steps=-3 should be greater than or equal to 0."),
        ("task=imagenet method=upop upop_search.lr=inf", "upop_search.lr=inf should be a finite number."),
        ("task=imagenet method=upop upop_search.lr=nan", "upop_search.lr=nan should be a finite number."),
        ("task=imagenet method=upop upop_search.stepps=3", "stepps= is not known here. Did you mean 'steps'?"),
        ("task=imagenet method=upop foo.steps=3", "'foo' is no part of this cell"),
        ("task=imagenet method=upop recipe=papre", "recipe=papre is not known for method=upop."),
        ("task=imagenet method=upop recipe=upop-cod", "Did you mean 'upop-code'?"),
        ("task=imagenet method=finetune", "method=finetune has nothing to restore: write magnitude+finetune"),
        ("task=imagenet method=magnitude+dense", "dense can only stand first in a chain."),
        ("task=imagenet method=dense+finetune+finetune", "has finetune twice"),
        ("task=imagenet method=magnitude+uniform", "uniform removes whole units and cannot follow the zeros of"),
        ("task=vqav2 model=deit-small", "model=deit-small cannot answer, which task=vqav2 needs. Models that"),
        ("task=imagenet model=deit-small", "model=deit-small is of suite=full, and suite=mini uses the small models"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_sentence(words: str, sentence: str) -> None:
    lines = refusal(words)
    assert len(lines) == 1, lines
    assert sentence in lines[0]


def test_all_mistakes_are_told_at_once() -> None:
    told = refusal("task=vqa method=upopp model=blipp suite=ful seed=x recip=mini sparsty=0.5 label=a/b")
    assert [line.split(" ")[0] for line in told] == [
        "suite=ful", "seed=x", "label=a/b:", "there", "there", "there", "recip=", "sparsty=",
    ]  # fmt: skip


def test_mistakes_in_all_places_are_told_at_once() -> None:
    told = refusal("task=vqav2 k_test=0 split=x seed=-1 method=upop finetune.lr=0 multiple_of=0 recipe=x steps=3")
    for part in ("seed=-1", "recipe=x", "steps= belongs", "k_test=0", "split=x", "multiple_of=0", "finetune.lr=0"):
        assert sum(part in line for line in told) == 1, part
    assert len(told) == 7


def test_an_option_of_what_could_not_be_found_is_not_told_as_unknown() -> None:
    """`steps` may well belong to the misspelled method."""
    assert len(refusal("task=imagenet method=fintune steps=3 upopp.interval=2")) == 1


def test_words_without_equals_sign_and_words_given_twice() -> None:
    told = refusal("foo task=imagenet bar task=vqav2")
    assert told[0].startswith("'foo' should be key=value")
    assert told[1].startswith("'bar' should be key=value")
    assert told[2] == "task= is given twice ('imagenet' and 'vqav2')."


# Whose an option is ------------------------------------------------------------------------------------------------


def test_an_option_of_two_links_names_both() -> None:
    assert refusal("task=imagenet method=upop steps=5") == [
        "steps= belongs to upop_search and finetune: write upop_search.steps= or finetune.steps=."
    ]


def test_an_option_called_like_a_word_of_the_cell_names_both() -> None:
    assert refusal("task=imagenet method=dense+finetune batch_size=8") == [
        "batch_size= belongs to the evaluation and to finetune: write evaluation.batch_size= or finetune.batch_size=."
    ]
    both = spec("task=imagenet method=dense+finetune evaluation.batch_size=7 finetune.batch_size=8")
    assert both.words.batch_size == 7
    assert both.links[1].options.model_dump()["batch_size"] == 8
    assert spec("task=imagenet method=magnitude batch_size=9").words.batch_size == 9


def test_the_same_option_with_and_without_prefix() -> None:
    assert "given twice" in refusal("task=imagenet method=magnitude sparsity=0.3 magnitude.sparsity=0.4")[0]
    assert "given twice" in refusal("task=imagenet limit=3 evaluation.limit=4")[0]


def test_a_prefix_chooses_the_link_and_the_task() -> None:
    found = options("task=imagenet method=upop upop_search.steps=5 finetune.steps=6 interval=2")
    assert (found["upop_search"]["steps"], found["finetune"]["steps"]) == (5, 6)
    assert found["upop_search"]["interval"] == 2
    assert spec("task=vqav2 task.k_test=3").task_options.model_dump()["k_test"] == 3


# Chains ------------------------------------------------------------------------------------------------------------


def test_a_named_chain_is_spelled_out_and_keeps_its_name() -> None:
    whole = spec("task=imagenet method=upop")
    assert [link.entry.name for link in whole.links] == ["upop_search", "finetune"]
    assert whole.method == spec("task=imagenet method=upop_search+finetune").method == "upop"


def test_off_drops_a_link() -> None:
    part = spec("task=imagenet method=upop finetune=off steps=5")
    assert part.method == "upop_search"
    assert options("task=imagenet method=upop finetune=off steps=5")["upop_search"]["steps"] == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("upop_search=off", "upop_search=off: the first link of a chain cannot be dropped."),
        ("finetune=on", "finetune=on: only finetune=off can be said of a link"),
        ("finetune=off finetune.steps=3", "finetune.steps= has no meaning with finetune=off."),
    ],
)
def test_off_has_its_limits(words: str, sentence: str) -> None:
    assert sentence in refusal(f"task=imagenet method=upop {words}")[0]


def test_off_of_another_link_is_an_unknown_word() -> None:
    assert "finetune= is not known here" in refusal("task=imagenet method=magnitude finetune=off")[0]


def test_ratio_is_another_way_to_write_sparsity() -> None:
    assert spec("task=imagenet method=magnitude ratio=4x").target == "0.75"
    assert spec("task=imagenet method=magnitude ratio=2").target == "0.5"
    assert spec("task=imagenet method=magnitude ratio=3x").target == "0.666667"
    assert options("task=imagenet method=upop ratio=2x") == options("task=imagenet method=upop sparsity=0.5")


@pytest.mark.parametrize("text", ["0.5", "0.50", "5e-1"])
def test_a_target_has_one_spelling(text: str) -> None:
    assert spec(f"task=imagenet method=magnitude sparsity={text}").target == "0.5"


def test_the_default_model_belongs_to_suite_and_task() -> None:
    assert spec("task=imagenet").model.name == "deit-mini"
    assert spec("task=imagenet suite=full").model.name == "deit-small"
    assert spec("task=vqav2").split == "val"


# Recipes -----------------------------------------------------------------------------------------------------------

RECIPES = """
    recipes = {"mini": {"sparsity": 0.25, "power": 2.0}, "strong": lambda c: {"power": 3 if c.sparsity > 0.6 else 1.5}}
"""


@pytest.fixture
def with_recipes(tmp_path: Path) -> None:
    """A workspace with a method whose own default, recipe and words can be told apart."""
    option = '\n    power: float = Field(1.0, gt=0, description="exponent")\n'
    text = method_file("powered", options=option).replace("    Options = Own\n", "    Options = Own\n" + RECIPES)
    (tmp_path / "vlbench.toml").write_text("")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "powered.py").write_text(text)
    forget()


@pytest.mark.usefixtures("with_recipes")
def test_defaults_then_recipe_then_words() -> None:
    full = options("task=imagenet suite=full method=powered")["powered"]
    assert (full["sparsity"], full["power"]) == (0.5, 1.0)
    mini = options("task=imagenet method=powered")["powered"]
    assert (mini["sparsity"], mini["power"]) == (0.25, 2.0)
    told = options("task=imagenet method=powered power=4")["powered"]
    assert (told["sparsity"], told["power"]) == (0.25, 4.0)


@pytest.mark.usefixtures("with_recipes")
def test_a_recipe_may_depend_on_the_target() -> None:
    assert options("task=imagenet method=powered recipe=strong sparsity=0.7")["powered"]["power"] == 3.0
    assert options("task=imagenet method=powered recipe=strong ratio=4x")["powered"]["power"] == 3.0
    assert options("task=imagenet method=powered recipe=strong powered.sparsity=0.7")["powered"]["power"] == 3.0
    assert options("task=imagenet method=powered recipe=strong")["powered"]["power"] == 1.5


@pytest.mark.usefixtures("with_recipes")
def test_a_ratio_takes_the_place_of_the_recipes_sparsity() -> None:
    assert options("task=imagenet method=powered ratio=4x")["powered"]["sparsity"] == 0.75


@pytest.mark.usefixtures("with_recipes")
def test_a_recipe_of_a_link_counts_in_a_chain() -> None:
    assert options("task=imagenet method=powered+finetune")["powered"]["power"] == 2.0
    assert spec("task=imagenet method=powered+finetune").recipe == "mini"
    assert spec("task=imagenet method=magnitude").recipe == "default"


def test_the_recipes_of_upop() -> None:
    """What the published scripts do for a vision model and for a vision-language one."""
    vision = options("task=imagenet method=upop recipe=upop-code")["upop_search"]
    both = options("task=vqav2 method=upop recipe=upop-code")["upop_search"]
    assert (vision["unit_cost"], vision["update_at_zero"]) == ("12:1", False)
    assert (both["unit_cost"], both["update_at_zero"]) == ("36:1", True)
    own = options("task=vqav2 method=upop recipe=upop-code unit_cost=macs")["upop_search"]
    assert (own["unit_cost"], own["budget"]) == ("macs", "code")


def test_a_recipe_may_name_an_option_of_a_link_that_is_off() -> None:
    """finetune=off with a recipe that sets finetune.steps is no mistake of the user's."""
    assert spec("task=imagenet method=upop recipe=upop-code finetune=off").method == "upop_search"


def test_a_changed_default_keeps_range_and_description() -> None:
    """methods/finetune.py says `steps: int = 300`, and the range stands in the base class."""
    fields = spec("task=imagenet method=dense+finetune").links[1].options.__class__.model_fields
    assert fields["steps"].default == 300
    assert fields["steps"].description == "optimiser steps"
