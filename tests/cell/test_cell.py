"""Identity: what makes another cell, and what must not (design section 2: content, never names)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.lab import method_file, write_toml
from vlbench.cell.cell import Cell, open_cell
from vlbench.cell.resolve import resolve
from vlbench.cell.words import parse
from vlbench.disk.storage import digest
from vlbench.errors import UserError
from vlbench.mini.world import MARKER, worlds_folder
from vlbench.plugins.table import forget, table


def cell(words: str = "", *, checkpoint: str = "weights") -> Cell:
    forget()
    model = "" if "model=" in words else "model=deit-mini"
    text = f"task=imagenet {model} checkpoint={checkpoint} {words}"
    return open_cell(resolve({"suite": "full", **parse(text.split())}))


def identity(words: str = "") -> str:
    """The id, read now: it is made when it is first asked for."""
    return cell(words).id


# What does not matter ----------------------------------------------------------------------------------------------


def test_neither_the_place_of_the_data_nor_that_of_the_weights_matters(box: Path) -> None:
    before = cell("method=magnitude+finetune").id
    shutil.move(box / "data", box / "elsewhere")
    shutil.move(box / "weights", box / "w2")
    (box / "w2" / "README.md").write_text("notes")
    write_toml(box, {"imagenet": box / "elsewhere"})
    assert cell("method=magnitude+finetune", checkpoint="w2").id == before


def test_the_name_of_a_weights_file_does_not_matter(box: Path) -> None:
    shutil.copy(box / "weights" / "model.safetensors", box / "a.safetensors")
    shutil.copy(box / "weights" / "model.safetensors", box / "b.safetensors")
    assert cell(checkpoint="a.safetensors").id == cell(checkpoint="b.safetensors").id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("method=mine sparsity=0.5 group=row", "group=row sparsity=5e-1 method=mine"),
        ("method=mine sparsity=0.5", "method=mine ratio=2x"),
        ("method=mine", "method=mine mine.sparsity=0.5 group=matrix"),
        ("method=mine seed=1", "method=mine seed=2"),
        ("method=upop recipe=mini", "method=upop_search+finetune"),
        ("method=mine batch_size=64", "method=mine"),
        ("method=mine split=val", "method=mine"),
    ],
)
@pytest.mark.usefixtures("box")
def test_two_ways_to_say_one_thing_are_one_cell(one: str, other: str) -> None:
    assert cell(one).id == cell(other).id


# What matters ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("box")
def test_every_word_that_can_change_a_number_makes_another_cell() -> None:
    texts = [
        "", "method=mine", "method=magnitude", "method=mine sparsity=0.4", "method=mine sparsity=2:4",
        "method=mine group=row", "method=mine+finetune", "method=mine+finetune seed=1",
        "method=mine+finetune finetune.lr=1e-5", "method=upop", "method=upop recipe=upop-code",
        "method=upop finetune=off",
        "precision=bf16", "batch_size=3", "limit=2", "method=mine limit=2",
    ]  # fmt: skip
    assert len({cell(text).id for text in texts}) == len(texts)


def test_an_edited_constant_of_a_workspace_method_makes_another_cell(box: Path) -> None:
    before, dense, other = identity("method=mine"), identity(), identity("method=magnitude")
    (box / "methods" / "mine.py").write_text(method_file("mine", constant=2.0))
    assert identity("method=mine") != before
    assert (identity(), identity("method=magnitude")) == (dense, other)


OWN = '''"""A family of a stranger."""

from vlbench.model import Card, family
from vlbench.images.spec import ImageSpec
from vlbench.plugins.table import table

Base = table("models").get("deit-small").load()
SCALE = 1.0


@family(Card(name="own", title="Own", capabilities=("classify",), checkpoint="weights", image=ImageSpec(size=64)))
class Own(Base):
    """DeiT under another name."""
'''


def test_an_edited_workspace_family_makes_another_cell(box: Path) -> None:
    (box / "registry").mkdir()
    (box / "registry" / "own.py").write_text(OWN)
    before, theirs = identity("model=own"), identity()
    (box / "registry" / "own.py").write_text(OWN.replace("1.0", "2.0"))
    assert identity("model=own") != before
    assert identity() == theirs


@pytest.mark.usefixtures("box")
@pytest.mark.slow
def test_what_cells_may_share_is_all_but_their_chains() -> None:
    """And of their chains, what they are calibrated on: the digest of its captions."""
    (Path("images")).mkdir()
    shutil.copy(next(Path("data/val/n90000001").iterdir()), "images/a.png")
    shared = []
    for text in ("a red bus", "a blue bus"):
        Path("captions.tsv").write_text(f"{text}\ta.png\n")
        words = "suite=mini task=coco_caption method=wanda calibration=captions.tsv calibration_images=images"
        for more in ("sparsity=0.5", "sparsity=0.7"):
            shared.append(digest(open_cell(resolve(parse(f"{words} {more}".split()))).shared_identity()))
    assert shared[0] == shared[1] != shared[2] == shared[3]


def test_a_file_that_is_edited_while_its_cell_runs_keeps_its_version(box: Path) -> None:
    running = cell("method=mine")
    version = running.spec.links[0].version
    (box / "methods" / "mine.py").write_text(method_file("mine", constant=2.0))
    assert running.spec.links[0].version == version


def test_other_weights_make_another_cell(box: Path) -> None:
    before = identity()
    tensors = load_file(box / "weights" / "model.safetensors")
    tensors["head.bias"][0] += 1e-3
    save_file(tensors, box / "weights" / "model.safetensors")
    assert identity() != before


def test_other_evaluated_data_make_another_cell(box: Path) -> None:
    before = {identity(), identity("method=mine+finetune")}
    next((box / "data" / "val" / "n90000001").iterdir()).unlink()
    assert not before & {identity(), identity("method=mine+finetune")}


def test_training_data_matter_only_to_what_learns(box: Path) -> None:
    plain, trained = identity("method=mine"), identity("method=mine+finetune")
    next((box / "data" / "train" / "n90000001").iterdir()).unlink()
    assert identity("method=mine") == plain
    assert identity("method=mine+finetune") != trained


def test_an_option_that_is_a_file_counts_by_its_content(box: Path) -> None:
    option = '\n    scores: Path | None = Field(None, description="a file")\n'
    text = method_file("mine", options=option, before="from pathlib import Path\n")
    (box / "methods" / "mine.py").write_text(text)
    (box / "a.txt").write_text("1")
    (box / "b.txt").write_text("1")
    first = cell("method=mine scores=a.txt").id
    assert cell("method=mine scores=b.txt").id == first
    (box / "b.txt").write_text("2")
    assert cell("method=mine scores=b.txt").id != first
    with pytest.raises(UserError, match=r"mine.scores=c.txt does not exist"):
        _ = cell("method=mine scores=c.txt").id


@pytest.mark.usefixtures("mini_world")
def test_the_mini_world_goes_by_its_pinned_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells are found again without reading it."""

    def no_reading(*arguments: object) -> None:
        raise AssertionError("the mini world is read")

    monkeypatch.setattr(table("tasks").get("imagenet").load(), "samples", no_reading)
    texts = ["", "limit=2", "split=select", "method=dense+finetune", "method=magnitude", "batch_size=3"]
    found = [cell(f"suite=mini {text}").id for text in texts]
    assert len(set(found)) == len(texts)
    other = replace(table("tasks").get("imagenet").load().mini_world(), digest="0" * 64)
    monkeypatch.setattr(table("tasks").get("imagenet").load(), "mini_world", lambda: other)
    (worlds_folder() / "imagenet" / MARKER).write_text(other.digest)
    assert not {cell(f"suite=mini {text}").id for text in texts} & set(found)


# The dense baseline ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("box")
def test_all_cells_of_one_model_and_split_share_a_dense_baseline() -> None:
    dense = cell().id
    for text in ("method=mine", "method=upop seed=3", "method=mine+finetune finetune.lr=1"):
        assert cell(text).dense().id == dense
    assert cell("precision=bf16").id == cell("method=mine precision=bf16").dense().id != dense


@pytest.mark.usefixtures("box")
def test_the_dense_baseline_does_not_read_the_data_again() -> None:
    one = cell("method=mine")
    _ = one.id
    assert one.dense().samples is one.samples


@pytest.mark.usefixtures("box")
def test_an_id_is_readable_and_a_file_name() -> None:
    text = cell("method=mine+finetune sparsity=2:4 seed=3").id
    assert text.startswith("full-imagenet-deit-mini-mine+finetune-2of4-s3-")
    assert "/" not in text
    assert ":" not in text


# What the report may not be ----------------------------------------------------------------------------------------


def test_report_samples_in_the_training_data_are_refused(box: Path) -> None:
    """By id: the same class and file name in train and val."""
    file = next((box / "data" / "val" / "n90000000").iterdir())
    shutil.copy(file, box / "data" / "train" / "n90000000" / file.name)
    with pytest.raises(UserError, match="report split val of imagenet are in the data") as told:
        _ = cell("method=mine+finetune").id
    assert file.name in str(told.value)
    assert cell("method=mine").id


# Where things are --------------------------------------------------------------------------------------------------


def test_a_folder_of_data_folders(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell().id
    (box / "vlbench.toml").write_text("")
    (box / "all").mkdir()
    shutil.move(box / "data", box / "all" / "imagenet")
    monkeypatch.setenv("VLBENCH_DATA", str(box / "all"))
    assert cell().id == before


def test_a_workspace_file_wins_over_the_environment(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "all" / "imagenet").mkdir(parents=True)
    monkeypatch.setenv("VLBENCH_DATA", str(box / "all"))
    assert len(cell().samples) == 6


# Numbers that came about otherwise -----------------------------------------------------------------------------------


def test_bf16_of_weights_that_are_stored_so_is_another_identity_and_nothing_else_is(box: Path) -> None:
    """Numerics of committed cells are 1; a bfloat16 file is held as it is stored since 0.2.0, under precision=bf16."""
    weights = load_file(box / "weights" / "model.safetensors")
    narrow = shutil.copytree(box / "weights", box / "narrow")
    save_file(
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in weights.items()}, narrow / "model.safetensors"
    )
    torch.save({k: v.bfloat16() for k, v in weights.items()}, box / "narrow.pth")
    for checkpoint, precision, numerics in (
        ("weights", "fp32", 1), ("weights", "bf16", 1), ("narrow", "fp32", 1), ("narrow", "bf16", 2),
        ("narrow.pth", "fp32", 1), ("narrow.pth", "bf16", 2),
    ):  # fmt: skip
        made = cell(f"method=magnitude precision={precision}", checkpoint=checkpoint)
        assert (made.identity["numerics"], made.dense().identity["numerics"]) == (numerics, numerics), checkpoint
