"""The contract of methods: one test over every registered one, and methods that break it in every way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import method_file
from vlbench.checks.contract import check_method
from vlbench.errors import RunFailed, UserError
from vlbench.machine.ui import Screen
from vlbench.plugins.table import forget, table


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(table("methods").entries))
def test_a_method_keeps_the_contract(name: str) -> None:
    assert len(list(check_method(name, Screen(quiet=True)))) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqav2", "nlvr2", "coco_caption", "coco_retrieval", "ade20k"])
def test_a_task_that_is_named_gives_its_mini_model_and_world(task: str) -> None:
    """One task of each other capability: magnitude keeps the contract on the model that is its default."""
    assert "sparsity=0.5: 50.0% of the prunable set is gone" in check_method("magnitude", Screen(quiet=True), task)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [("vqav3", "Did you mean 'vqav2'"), ("mme", "no model of suite mini is the default")],
)
def test_a_task_that_cannot_be_had_is_told(task: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(check_method("magnitude", Screen(quiet=True), task))


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty workspace that is the current folder."""
    (tmp_path / "vlbench.toml").write_text("")
    (tmp_path / "methods").mkdir()
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


def verdict(box: Path, text: str) -> str:
    """The sentence of the failure, empty where the contract is kept."""
    (box / "methods" / "mine.py").write_text(text)
    forget()
    try:
        list(check_method("mine", Screen(quiet=True)))
    except RunFailed as failure:
        return str(failure)
    return ""


SOUND = method_file("mine")
MASK = 'job.changes.mask({name: keep}, "unstructured")'
BY_HAND = '''"""Own."""
import torch
from vlbench.method import Method, method
from vlbench.options import PruneOptions
{before}

@method("mine", title="Mine", role="pruner", patterns=("unstructured",))
class Mine(Method):
    """What it is."""

    Options = PruneOptions

    def apply(self, job):
        net = job.model.net
{body}
'''
ZEROS = """        for name in job.changes.structure.matrices:
            weight = net.get_parameter(name)
            keep = torch.ones_like(weight, dtype=torch.bool)
            keep.view(-1)[: int(weight.numel() * {fraction})] = False
            {use}
"""
RESTORER = '''"""Own."""
import torch
from vlbench.method import Method, method

@method("mine", title="Mine", role="restorer")
class Mine(Method):
    """What it is."""

    def apply(self, job):
        with torch.no_grad():
            for parameter in job.model.net.parameters():
                {line}
'''


def with_recipe(recipe: str) -> str:
    return SOUND.replace("Options = Own", f'Options = Own\n    recipes = {{"r": {recipe}}}')


def by_hand(fraction: str = "self.options.fraction", use: str = MASK) -> str:
    return BY_HAND.format(before="", body=ZEROS.format(fraction=fraction, use=use))


def test_sound_methods_pass(box: Path) -> None:
    assert verdict(box, SOUND) == ""
    assert verdict(box, by_hand()) == ""
    assert verdict(box, RESTORER.format(line="parameter.mul_(1.5)")) == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (method_file("mine", before="1 / 0"), "raises on import"),
        (SOUND.replace('"""What it is."""', ""), "Mine has no docstring"),
        (SOUND.replace('role="pruner"', 'role="prunner"'), "role='prunner' is none of baseline, pruner, restorer"),
        (SOUND.replace('"n:m"', '"nm"'), "patterns has 'nm'"),
        (SOUND.replace('role="pruner"', 'role="restorer"'), "a pruner names the patterns it can leave behind"),
        (SOUND.replace("(ScorePruner)", "").replace("    Options = Own\n", ""), "is no subclass of vlbench"),
        (method_file("mine", options="\n    power: float = 1.0\n"), "the option mine.power has no description"),
        (
            method_file("mine", options='\n    power: float = Field(-1.0, gt=0, description="d")\n'),
            "the defaults of mine: power: Input should be greater than 0",
        ),
        (with_recipe('{"powr": 1}'), "recipe=r sets powr, which is no option"),
        (with_recipe('{"group": "x"}'), "recipe=r for task="),
        (with_recipe("lambda c: 1 / 0"), "raises ZeroDivisionError"),
        (SOUND.replace("(weight * CONSTANT).abs()", "no_such_name"), "a run with sparsity=0.5 raises NameError"),
        (SOUND.replace("(weight * CONSTANT).abs()", "__import__('torch').rand_like(weight)"), "seed=1 changes"),
    ],
)  # fmt: skip
def test_a_broken_declaration_is_told(box: Path, text: str, sentence: str) -> None:
    told = verdict(box, text)
    assert sentence in told
    assert str(box / "methods" / "mine.py") in told


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (by_hand(fraction="0.5"), "sparsity=0.75 removed 50.0% of the prunable set"),
        (by_hand(use="weight.data.mul_(keep)"), "the job was told the pattern 'dense'"),
        (
            by_hand(use='weight.data.mul_(keep); job.changes.state.pattern = "unstructured"'),
            "do not survive finetuning",
        ),
        (by_hand(use='job.changes.mask({name: keep}, "2:4")'), "the job was told the pattern '2:4'"),
        (by_hand(use=f"{MASK}; weight.data.add_(1e-3 * keep.logical_not())"), "removed 0.0%"),
        (by_hand(use=f"{MASK}; weight.data[keep] *= float('inf')"), "are not finite"),
        (
            by_hand(use=f"{MASK}; weight.data += weight.data * (job.here.seed + 1)"),
            "the decorator does not say uses_seed=True",
        ),
        (RESTORER.format(line="parameter.add_(0.1)"), "that a mask had set to zero are not zero any more"),
        (RESTORER.format(line="parameter.mul_(1 + id(parameter) % 1000)"), "and one seed differ in"),
    ],
)  # fmt: skip
def test_broken_behaviour_is_told(box: Path, text: str, sentence: str) -> None:
    assert sentence in verdict(box, text)


def test_an_n_of_m_pattern_is_counted(box: Path) -> None:
    """It says 2:4 and keeps the right half of every row."""
    text = by_hand(use='job.changes.mask({name: keep}, f"{n}:{m}" if self.options.n_m else "unstructured")')
    text = text.replace('patterns=("unstructured",)', 'patterns=("n:m",)').replace(
        "net = job", "n, m = 2, 4; net = job"
    )
    assert "does not keep 2 of every 4 columns" in verdict(box, text)


def test_a_saved_model_must_be_whole(box: Path) -> None:
    """Whatever a method changes behind the structure's back is lost when the model is reloaded."""
    body = ZEROS.format(fraction="self.options.fraction", use=MASK)
    body += "        net.register_forward_hook(lambda module, args, out: out + 1)\n"
    assert "the saved and reloaded model" in verdict(box, BY_HAND.format(before="", body=body))
