"""Calibration on other data: what becomes of their samples, their identity, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlbench.cell.cell import Cell, open_cell
from vlbench.cell.resolve import resolve
from vlbench.cell.sources import adapted
from vlbench.cell.words import parse
from vlbench.errors import UserError
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.mini.world import mini_root
from vlbench.plugins.table import forget, table
from vlbench.task import Sample, Task

CAPTION = Sample("caption-1", (Path("1.jpg"),), target="a red bus on the road", cluster="1")
MATCH = Sample("caption-1", (Path("1.jpg"),), target="1", cluster="1", texts=("a red bus on the road",))


@pytest.fixture(autouse=True)
def _plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLBENCH_DATA", raising=False)
    forget()
    yield
    forget()


def task(name: str) -> Task:
    cls = table("tasks").get(name).load()
    found: Task = cls(mini_root(cls.mini_world()), cls.Options.model_validate(dict(cls.mini)))
    return found


def cell(words: str) -> Cell:
    forget()
    return open_cell(resolve(parse(words.split())))


def captions(folder: Path, texts: list[str], image: Path | None = None) -> Path:
    """A table of captions with an image each: grey ones, or copies of one."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{n}.png" for n in range(len(texts))]
    for number, name in enumerate(names):
        if image is None:
            Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / name)
        else:
            shutil.copy(image, folder / name)
    file = folder / "captions.tsv"
    file.write_text("".join(f"{text}\t{name}\n" for text, name in zip(texts, names, strict=True)))
    return file


# What samples become -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sample", "capability"), [(CAPTION, "caption"), (MATCH, "match")])
def test_an_image_with_a_caption_becomes_what_the_task_needs(sample: Sample, capability: str) -> None:
    def becomes(name: str) -> Sample:
        return adapted([sample], capability, table("tasks").get(name).load()(Path(), None), "calibration=x")[0]

    assert becomes("coco_caption").target == "a red bus on the road"
    assert becomes("coco_retrieval").texts == ("a red bus on the road",)
    assert becomes("coco_retrieval").target == "1"
    answer = becomes("vqav2")
    assert (answer.text, answer.target) == ("a red bus", {"on the road": 1.0})
    assert {becomes(n).images for n in ("vqav2", "coco_caption", "coco_retrieval")} == {sample.images}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("task=nlvr2 calibration=coco_caption", "has samples to caption, and task=nlvr2 needs some to judge"),
        ("task=imagenet calibration=coco_caption", "needs some to classify"),
        ("task=coco_caption calibration=vqav2", "calibration=vqav2 has samples to answer"),
        ("task=vqav2 calibration=coco_captions", "is neither a task nor a file of captions. Did you mean 'coco_cap"),
        ("task=vqav2 calibration=cc3m/none.tsv", "calibration=cc3m/none.tsv is neither a task nor a file"),
    ],
)
def test_what_cannot_be_is_told_before_anything(words: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        cell(f"method=wanda {words}")


def test_a_folder_of_images_without_a_file_is_told() -> None:
    with pytest.raises(UserError, match="give calibration=FILE, too"):
        cell("task=vqav2 method=wanda calibration_images=.")


# Identity ----------------------------------------------------------------------------------------------------------


def test_the_source_is_in_the_identity_and_train_is_not() -> None:
    plain, other = cell("task=vqav2 method=wanda"), cell("task=vqav2 method=wanda calibration=coco_caption")
    assert plain.id != other.id
    assert plain.identity["train"] is not None
    assert other.identity["train"] is None
    assert other.identity["chain"][0][2]["calibration"] == other.sources["wanda"].digest
    assert other.id != cell("task=vqav2 method=wanda calibration=flickr30k_retrieval").id
    assert other.dense().id == plain.dense().id
    trained = cell("task=vqav2 method=wanda+finetune calibration=coco_caption")
    assert trained.identity["train"] == plain.identity["train"]  # finetuning reads it


def test_a_file_counts_by_its_content_and_not_by_its_folder(tmp_path: Path) -> None:
    def identity(file: Path, images: str = "") -> str:
        return cell(f"task=vqav2 method=wanda calibration={file} {images}").id

    first = captions(tmp_path / "a", ["a red bus", "two dogs"])
    before = identity(first)
    assert identity(captions(tmp_path / "b", ["a red bus", "two dogs"])) == before
    shutil.copy(first, tmp_path / "captions.tsv")
    assert identity(tmp_path / "captions.tsv", f"calibration_images={tmp_path / 'a'}") == before
    assert identity(captions(tmp_path / "c", ["a red bus", "two cats"])) != before
    source = cell(f"task=vqav2 method=wanda calibration={first}").sources["wanda"]
    assert source.name == f"captions.tsv:{source.digest[:12]}"


def test_a_record_names_the_source_and_no_folder(tmp_path: Path) -> None:
    from vlbench.cell.cell import recorded_options

    file = captions(tmp_path / "a", ["a red bus"])
    found = cell(f"task=vqav2 method=wanda calibration={file} calibration_images={file.parent}")
    told = recorded_options(found.spec.links[0], found.sources["wanda"])
    assert str(tmp_path) not in json.dumps(told)
    assert told["calibration"].startswith("captions.tsv:")
    assert "calibration" not in recorded_options(cell("task=vqav2 method=wanda").spec.links[0], None)


# Samples of the report split ---------------------------------------------------------------------------------------


def test_images_of_the_report_split_are_refused_wherever_they_lie(tmp_path: Path) -> None:
    shown = task("vqav2").samples("val")[0].images[0]
    file = captions(tmp_path / "a", ["a red bus", "two dogs"])
    (tmp_path / "a" / "captions.tsv").write_text(f"a red bus\t{shown.name}\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / shown.name)
    assert cell(f"task=vqav2 method=wanda calibration={file}").id  # another picture of that name
    shutil.copy(shown, tmp_path / "a" / "another.jpg")
    (tmp_path / "a" / "captions.tsv").write_text("a red bus\tanother.jpg\n")
    with pytest.raises(UserError, match=f"shows 1 image of the report split val of vqav2.*another.jpg is {shown.name}"):
        _ = cell(f"task=vqav2 method=wanda calibration={file}").id


def test_ids_of_the_report_split_are_refused() -> None:
    from vlbench.cell.sources import refuse_shown

    vqa = task("vqav2")
    report = vqa.samples("val")[3]
    with pytest.raises(UserError, match=f"1 samples of the report split val of vqav2.*first: {report.id}"):
        refuse_shown([Sample(report.id, (Path("elsewhere.png"),))], vqa, "calibration=x")


# Calibration -------------------------------------------------------------------------------------------------------


def job(words: str, folder: Path) -> Job:
    found = cell(words)
    cls: Any = found.spec.model.load()
    card = next(c for c in cls.cards if c.name == found.spec.model.name)
    model = cls.open(card, found.weights)
    source = found.sources["wanda"]
    return Job(model, found.task, ImageStore(card.image), Surroundings(0, folder), source=source)


@pytest.mark.parametrize("name", ["vqav2", "coco_retrieval", "coco_caption"])
def test_every_block_is_calibrated_on_captions(tmp_path: Path, name: str) -> None:
    """A model that answers, one that matches and one that captions: all their towers see the file's samples."""
    file = captions(tmp_path / "a", ["a red circle is left of a blue square", "two dogs", "one", "a b c d"])
    made = job(f"task={name} method=wanda calibration={file} calibration_samples=4", tmp_path / "job")
    method = table("methods").get("wanda").load()
    method(method.Options(calibration_samples=4)).apply(made)
    assert set(made.changes.state.masks) == set(made.changes.structure.matrices)
    assert made.changes.state.log["wanda"]["calibration"]["samples"] == 4


def test_too_few_are_counted(tmp_path: Path) -> None:
    file = captions(tmp_path / "a", ["a red bus", "two dogs", "a cat"])
    made = job(f"task=vqav2 method=wanda calibration={file}", tmp_path / "job")
    with pytest.raises(
        UserError, match=r"128 calibration samples were asked for, and calibration=.*captions.tsv shows 3 im"
    ):
        made.data.calibration(128)
    assert [len(batch.samples) for batch in made.data.calibration(3, 2)] == [2, 1]


def test_samples_follow_the_seed(tmp_path: Path) -> None:
    made = job("task=vqav2 method=wanda calibration=coco_caption", tmp_path)
    first = [s.id for b in made.data.calibration(8) for s in b.samples]
    made.data.seed = 1
    second = [s.id for b in made.data.calibration(8) for s in b.samples]
    assert len(set(first)) == 8
    assert first != second
    made.data.seed = 0
    assert [s.id for b in made.data.calibration(8) for s in b.samples] == first
