"""A capability that a workspace brings, which no file of the engine names, does all that a built-in does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab import Lab
from vlbench.capability import Classifier, capability_of
from vlbench.cell.cell import open_cell
from vlbench.cell.resolve import resolve
from vlbench.cost.report import costs
from vlbench.errors import UserError
from vlbench.plugins.table import forget, table
from vlbench.training.loop import Schedule

ROOT = Path(__file__).resolve().parents[2]
# Two passes, as retrieval has: the second ranks all classes of an image by what the first said of all images.
FAMILY = '''
"""Orders the classes of an image."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vlbench.capability import Capability, Outputs, Pass, Stated, capability
from vlbench.cost.sample import batch_of, pixels, samples_of, single
from vlbench.images.spec import ImageSpec
from vlbench.model import Card, family
from vlbench.registry.deit import DeiT


def _sample(model, count, train):
    return batch_of(model, samples_of(count, target=model.classes[0]), pixels(model, count), single(count))


@capability("toyorder", title="all classes of an image, in order")
class Order(Capability):
    """The loss is the cross entropy of the right class over the batch."""

    stated = Stated("one toy", "one toy, ordered", _sample)
    loss_over_batch = True

    def predict(self, model, states, batch):
        rows = model.logits(states)[batch.owner[:, 0]].argsort(1, descending=True).tolist()
        return [{"top5": [model.classes[i] for i in row]} for row in rows]

    def outputs(self, model, batch):
        logits = model.logits(model.encode(batch.images))[batch.owner[:, 0]]
        target = torch.tensor([model.classes.index(s.target) for s in batch.samples])
        return Outputs(lambda: F.cross_entropy(logits, target), [(logits, 1 / len(logits))])

    def evaluate(self, run, samples, lines):
        looked = lines.beside("looked")
        first = looked.finish(run.predict(Pass("look", lambda m, s, b: [{"seen": True}] * len(b.samples)), samples,
                                          looked, run.settings))
        looked.discard()
        assert [line["prediction"]["seen"] for line in first] == [True] * len(samples)
        return super().evaluate(run, samples, lines)


@family(Card(name="toy-net", title="Toy", capabilities=("toyorder",), checkpoint="mini:deit-mini",
             image=ImageSpec(size=64), default_for=("toytask",), suite="mini"))
class Toy(DeiT):
    """A DeiT."""
'''
TASK = '''
"""ImageNet whose answers are whole orders."""
from vlbench.task import task
from vlbench.tasks.imagenet import ImageNet


@task("toytask", title="Toy task", capability="toyorder", metric="top1", version=1, data="imagenet")
class ToyTask(ImageNet):
    """The first five count."""
'''


@pytest.fixture
def toy(lab: Lab) -> Lab:
    lab.plug("registry/toy.py", FAMILY)
    lab.plug("tasks/toytask.py", TASK)
    return lab


def words(lab: Lab) -> list[str]:
    return ["suite=full", "task=toytask", "model=toy-net", f"checkpoint={lab.weights}"]


def test_no_file_of_the_engine_names_it() -> None:
    names = re.compile(r"toyorder|toytask|toy-net")
    assert not [f for f in (ROOT / "vlbench").rglob("*.py") if names.search(f.read_text(encoding="utf-8"))]


def test_it_is_listed_explained_and_counted(toy: Lab) -> None:
    assert "toyorder  all classes of an image, in order" in toy("list", "capabilities").out
    told = toy("help", "capability=toyorder").out
    assert "toy-net" in told
    assert "toytask" in told
    found, _ = costs({"model": "toy-net,deit-mini"})
    assert [one.capability for one in found] == ["toyorder", "classify"]
    assert found[0].macs == found[1].macs > 0  # the same network on one image
    assert found[0].sample == "one toy"


def test_it_is_evaluated_as_the_network_is_by_the_built_in(toy: Lab) -> None:
    """Of the same weights the same five best classes; methods prune and train on its loss."""
    assert toy.run("method=dense").code == 0
    chain = ("method=taylor+finetune", "calibration_samples=8", "steps=1", "finetune.batch_size=4")
    for method in (("method=dense",), chain):
        told = toy("run", *words(toy), *method)
        assert told.code == 0, told.err
    dense = sorted(toy.folder.glob("runs/*dense*/predictions.jsonl"))
    assert [file.parent.name.split("dense")[0].count("toytask") for file in dense] == [0, 1]
    assert dense[0].read_text() == dense[1].read_text()
    assert len(list(toy.folder.glob("runs/*/result.json"))) == 3
    assert not list(toy.folder.glob("runs/*/looked*"))


def test_its_loss_compares_samples_and_says_so(toy: Lab) -> None:
    schedule = Schedule(steps=1, lr=1e-3, accumulate=2, batch_size=4)
    assert "the loss of toyorder compares the samples" in schedule.refusal("toyorder")
    assert schedule.refusal("classify") == ""


def test_an_edit_of_it_is_another_cell(toy: Lab) -> None:
    """Of a file of its own, too, which neither the task nor the family imports."""
    ability, model = FAMILY.split("@family")
    toy.plug("registry/toy.py", FAMILY.split("@capability")[0] + "@family" + model)
    toy.plug("capabilities/alone.py", ability)
    first = open_cell(resolve(dict(word.split("=", 1) for word in words(toy)))).identity
    toy.plug("capabilities/alone.py", ability + "# edited\n")
    edited = open_cell(resolve(dict(word.split("=", 1) for word in words(toy)))).identity
    assert first["capability"] != edited["capability"]
    assert {**first, "capability": ""} == {**edited, "capability": ""}
    built_in = open_cell(resolve(dict(word.split("=", 1) for word in toy.words)))
    assert "capability" not in built_in.identity


def test_two_of_one_name_are_refused(toy: Lab) -> None:
    toy.plug("capabilities/other.py", FAMILY.split("@family")[0])
    with pytest.raises(UserError, match=r"the capability 'toyorder' is registered twice, by .*other.py and"):
        table("capabilities")


def test_an_unknown_one_and_a_family_that_lacks_methods_are_refused(toy: Lab) -> None:
    with pytest.raises(UserError, match="there is no capability 'toyordr'"):
        capability_of("toyordr")
    assert capability_of("classify").lacking(Classifier) == []
    assert capability_of("segment").lacking(Classifier) == ["segment", "segment_outputs", "segment_terms"]
    toy.plug("registry/toy.py", FAMILY.replace('capabilities=("toyorder",)', 'capabilities=("segment",)'))
    with pytest.raises(UserError, match=r"toy-net: Toy has no segment\(\)"):
        table("models").get("toy-net").load()
    forget()
