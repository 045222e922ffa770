"""Counted costs: full-size architectures against the numbers of papers and of an independent count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.lab import Lab
from vlbench.cost.architecture import with_blank
from vlbench.cost.counts import flop_counter, stated_macs
from vlbench.cost.report import cut_uniformly
from vlbench.cost.sample import infer, stated, text_of, train
from vlbench.model import Model
from vlbench.plugins.entry import Entry
from vlbench.plugins.table import forget, table

pytestmark = pytest.mark.slow

# Parameters in M and GMACs. Two independent counts: that of ../shared/research/deps.md 5 (FlopCounterMode on the
# libraries' own models), whose BLIP-VQA decodes one position more; and CLIP's 190.96 G for the image, its text of 77
# tokens (6.65 G) shortened to ours.
FULL_SIZE = {
    ("deit-small", "classify"): (22.05, 4.599),
    ("segmenter-small", "segment"): (26.03, 38.40),
    ("blip-caption", "caption"): (223.97, 65.53),
    ("blip-nlvr", "judge"): (259.37, 132.57),
    ("blip-vqa", "answer"): (361.48, 107.19),
    ("blip-retrieval-coco", "match"): (223.74, 66.20),
    ("clip-vit-l14-336", "match"): (427.94, 190.96 + 6.65 * 14 / 77),
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    yield Lab(tmp_path, monkeypatch, capsys)
    forget()


@pytest.mark.parametrize(("name", "capability"), FULL_SIZE)
def test_full_size(name: str, capability: str) -> None:
    if name not in table("models").entries:
        pytest.skip(f"there is no model {name} yet")
    parameters, macs = FULL_SIZE[name, capability]

    def count(model: Model) -> tuple[int, int]:
        return sum(p.numel() for p in model.net.parameters()), stated_macs(model, capability)

    found = with_blank(table("models").get(name), count)
    assert found[0] / 1e6 == pytest.approx(parameters, abs=0.006)
    assert found[1] / 1e9 == pytest.approx(macs, rel=1e-3)


def mini(capability: str) -> Entry:
    """A mini model with the capability whose files are there."""
    for entry in table("models").entries.values():
        if entry.facts.get("suite") == "mini" and capability in entry.facts["capabilities"]:
            folder = entry.file.parent / "mini" / entry.name
            if (folder / "model.safetensors").is_file():
                return entry
    pytest.skip(f"there is no mini model that can {capability} yet")


def opened(entry: Entry) -> Model:
    family = entry.load()
    card = next(c for c in family.cards if c.name == entry.name)
    model: Model = family.open(card, entry.file.parent / "mini" / entry.name)
    return model


@pytest.mark.parametrize("capability", table("capabilities").entries)
def test_a_model_without_weights_counts_like_the_real_one(capability: str) -> None:
    """The oracle computes: real weights, and products that are really formed."""
    entry = mini(capability)
    model = opened(entry)
    batch = stated(capability).make(model, 1, True)
    with torch.no_grad(), flop_counter() as counter:
        train(model, capability, batch)
    assert with_blank(entry, lambda blank: stated_macs(blank, capability)) == counter.get_total_flops() // 2
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("capability", table("capabilities").entries)
def test_the_stated_sample_is_evaluated(capability: str) -> None:
    """Three of them: a prediction each, as evaluation gives them."""
    model = opened(mini(capability))
    model.net.eval()
    with torch.inference_mode():
        found = infer(model, capability, stated(capability).make(model, 3, False))
    for predictions in found if capability == "match" else [found]:
        assert len(predictions) == 3


@pytest.mark.parametrize("tokens", [4, 10, 14, 37])
def test_texts_have_the_tokens_that_are_stated(tokens: int) -> None:
    """Counted by the tokenizer itself, with the special ones."""
    model = opened(mini("answer"))
    assert len(model.tokenizer(text_of(model, tokens)).input_ids) == tokens  # type: ignore[attr-defined]


def test_uniform_cuts_cost_what_the_cut_model_costs() -> None:
    """Half of DeiT-S: UPop's table prints 11.4 M and 2.3 G for a uniform half."""

    def half(model: Model) -> tuple[int, int]:
        cut_uniformly(model, 0.5)
        return sum(p.numel() for p in model.net.parameters()), stated_macs(model, "classify")

    parameters, macs = with_blank(table("models").get("deit-small"), half)
    assert parameters / 1e6 == pytest.approx(11.4, abs=0.05)
    assert macs / 1e9 == pytest.approx(2.3, abs=0.05)


def test_the_verb(lab: Lab) -> None:
    rows = json.loads(lab("cost", "model=deit-tiny,deit-mini", "sparsity=0.5", "--json").out)["costs"]
    assert [(row["model"], round(row["sparsity"], 3)) for row in rows] == [
        ("deit-tiny", 0.0), ("deit-tiny", 0.5), ("deit-mini", 0.0), ("deit-mini", 0.5),
    ]  # fmt: skip
    assert rows[0]["bytes"] == 4 * rows[0]["parameters"]
    assert rows[1]["macs"] < 0.6 * rows[0]["macs"]
    told = lab("cost", "model=deit-tiny").out
    assert "5.72M" in told
    assert "classify: one image" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["modl=deit-tiny"], "Did you mean 'model'?"),
        (["model=deit-tiny", "sparsity=2:4"], "should be a fraction like 0.5"),
        (["model=deit-tiny", "task=vqav2"], "model=deit-tiny cannot answer"),
        (["model=deit-tinny"], "Did you mean 'deit-tiny'?"),
    ],
)
def test_wrong_words(lab: Lab, words: list[str], sentence: str) -> None:
    assert sentence in lab.refused("cost", *words)


def test_a_family_without_an_architecture_is_told(lab: Lab) -> None:
    (lab.folder / "vlbench.toml").write_text("")
    lab.plug("registry/mine.py", FAMILY)
    assert "is built from a folder with its config.json" in lab.refused("cost", "model=mine")
    rows = json.loads(lab("cost", "task=imagenet", "--json").out)
    assert "mine" in rows["skipped"]
    assert "deit-small" in {row["model"] for row in rows["costs"]}


FAMILY = '''"""A family of a stranger."""

from vlbench.model import Card, Model, family
from vlbench.capability import Classifier
from vlbench.images.spec import ImageSpec


@family(Card(name="mine", title="Mine", capabilities=("classify",), checkpoint="a/b", image=ImageSpec(size=64)))
class Mine(Model, Classifier):
    """What it is."""
'''
