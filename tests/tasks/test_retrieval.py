"""Both retrieval tasks on BLIP's and Karpathy's layouts made here, and on 204 real photographs with their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.beside import there
from vlbench.errors import UserError
from vlbench.evaluation.ranks import ranks
from vlbench.plugins.table import table
from vlbench.records.statistics import bootstrap
from vlbench.task import digest_samples

SIZES = {"train": 4, "val": 2, "test": 3}


def task_class(name: str) -> Any:
    return table("tasks").get(f"{name}_retrieval").load()


def make(name: str, root: Path, **options: Any) -> Any:
    cls = task_class(name)
    return cls(root, cls.Options(**options))


def numbers(split: str) -> range:
    first = {"train": 1, "val": 101, "test": 201}[split]
    return range(first, first + SIZES[split])


def texts(n: int) -> list[str]:
    """Five captions, six of every third image."""
    return [f"Caption {k} of {n}." for k in range(5 + (n % 3 == 0))]


def image_name(name: str, split: str, n: int) -> str:
    year = "train2014" if split == "train" else "val2014"
    return f"{year}/COCO_{year}_{n:012d}.jpg" if name == "coco" else f"{n:010d}.jpg"


def touch_images(name: str, root: Path) -> None:
    for split in SIZES:
        for n in numbers(split):
            path = root / ("flickr30k-images" if name == "flickr30k" else ".") / image_name(name, split, n)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def write_blip(name: str, root: Path) -> Path:
    touch_images(name, root)
    for split in SIZES:
        images = [(image_name(name, split, n), texts(n)) for n in numbers(split)]
        if split == "train":
            rows = [{"image": image, "caption": text, "image_id": image} for image, found in images for text in found]
        else:
            rows = [{"image": image, "caption": found} for image, found in images]
        file = f"coco_karpathy_{split}.json" if name == "coco" else f"flickr30k_{split}.json"
        (root / file).write_text(json.dumps(rows))
    return root


def write_karpathys(name: str, root: Path) -> Path:
    """Sentence ids count from 200, so that some are those of images."""
    touch_images(name, root)
    rows, sentence = [], 200
    for split in SIZES:
        for n in numbers(split):
            image = Path(image_name(name, split, n))
            found = texts(n)
            sentences = [{"raw": text, "sentid": sentence + k, "tokens": []} for k, text in enumerate(found)]
            sentence += len(found)
            where = {"cocoid": n, "filepath": str(image.parent)} if name == "coco" else {}
            rows.append({"filename": image.name, "split": split, "sentences": sentences, **where})
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": rows}))
    return root


@pytest.mark.parametrize("write", [write_blip, write_karpathys])
@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_evaluated_are_images_with_all_their_captions(name: str, write: Any, tmp_path: Path) -> None:
    task = make(name, write(name, tmp_path))
    for split in ("test", "val"):
        assert task.missing(split) == []
        samples = task.samples(split)
        ids = [str(n) if name == "coco" else f"{n:010d}" for n in numbers(split)]
        assert [s.id for s in samples] == [s.target for s in samples] == ids
        assert [s.texts for s in samples] == [tuple(texts(n)) for n in numbers(split)]
        assert all(s.images[0].is_file() and len(s.images) == 1 and s.cluster == s.text == "" for s in samples)
    cut = make(name, tmp_path, captions_per_image=5)
    assert [len(s.texts) for s in cut.samples("test")] == [5] * SIZES["test"]
    assert [len(s.texts) for s in task.samples("test")] == [6, 5, 5]
    assert digest_samples(cut.samples("test")) != digest_samples(task.samples("test"))
    assert len(cut.samples("train")) == len(task.samples("train"))


@pytest.mark.parametrize("write", [write_blip, write_karpathys])
@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_trained_on_are_captions(name: str, write: Any, tmp_path: Path) -> None:
    task = make(name, write(name, tmp_path))
    samples = task.samples("train")
    assert [s.texts for s in samples] == [(text,) for n in numbers("train") for text in texts(n)]
    assert [int(s.cluster) for s in samples] == [n for n in numbers("train") for _ in texts(n)]
    assert all(s.target == s.cluster for s in samples)
    assert len({s.id for s in samples}) == len(samples)
    assert not {s.id for s in samples} & {s.id for split in ("val", "test") for s in task.samples(split)}


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_the_digest_does_not_depend_on_the_folder(name: str, tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "deep/b"]
    digests = [digest_samples(make(name, write_blip(name, root)).samples("test")) for root in roots]
    assert digests[0] == digests[1]
    (tmp_path / "a/annotations").mkdir()
    for path in (tmp_path / "a").glob("*.json"):
        path.rename(tmp_path / "a/annotations" / path.name)
    assert digest_samples(make(name, tmp_path / "a").samples("test")) == digests[0]


def test_roles_and_settings(tmp_path: Path) -> None:
    for name, k_test in (("coco", 256), ("flickr30k", 128)):
        task = make(name, tmp_path)
        assert task.data == name
        assert task.capability == "match"
        assert task.roles() == {"train": "train", "select": "val", "report": "test"}
        assert task.report_splits() == ("test", "val")
        assert task.settings("test") == {"k_test": k_test}
        assert make(name, tmp_path, k_test="0").settings("val") == {"k_test": 0}
        for wrong in ({"k_test": -1}, {"captions_per_image": 0}, {"rerank": True}):
            with pytest.raises(ValidationError):
                make(name, tmp_path, **wrong)
        with pytest.raises(UserError, match="no split 'tests'"):
            task.samples("tests")


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    sentences = make(name, tmp_path).missing("test")
    assert f"dataset_{name}.json" in sentences[0]
    assert len(sentences) == 2
    with pytest.raises(UserError, match=f"dataset_{name}"):
        make(name, tmp_path).samples("test")
    write_blip(name, tmp_path)
    next(tmp_path.rglob("*202.jpg")).unlink()
    with pytest.raises(UserError, match="lacks images: .*202.jpg"):  # noqa: RUF043
        make(name, tmp_path).samples("test")


def test_an_image_without_captions_is_refused(tmp_path: Path) -> None:
    write_blip("coco", tmp_path)
    path = tmp_path / "coco_karpathy_test.json"
    rows = json.loads(path.read_text())
    rows[1]["caption"] = []
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="images without a caption in test: 202"):
        make("coco", tmp_path).samples("test")


def test_scores_and_metrics(shared: Path, tmp_path: Path) -> None:
    """From recorded scores to the percentages of BLIP's itm_eval; intervals over images."""
    task = make("coco", tmp_path)
    folder = shared / "oracles/metrics/retrieval"
    with np.load(folder / "scores_a.npz") as recorded:
        scores = recorded["continuous__i2t"]
    text_rank, image_ranks = ranks(scores, scores, np.repeat(np.arange(100), 5))
    samples = [module_sample(n) for n in range(100)]
    said = [
        {"text_rank": int(a), "image_ranks": b}
        for a, b in zip(text_rank, image_ranks.reshape(100, 5).tolist(), strict=True)
    ]
    rows = json.loads(json.dumps(task.scores(samples, said)))
    blip = json.loads((folder / "results_a.json").read_text())["continuous"]["blip_itm_eval_numpy_argsort"]
    found = task.aggregate(samples, rows)
    assert found.keys() == task.metrics.keys()
    names = {"tr": "txt", "ir": "img"}
    theirs = {f"{d}_r{k}": blip[f"{names[d]}_r{k}"] for d in names for k in (1, 5, 10)}
    assert {m: v for m, v in found.items() if m in theirs} == pytest.approx(theirs, abs=1e-9)
    assert found["r_mean"] == pytest.approx(blip["r_mean"], abs=1e-9)
    spread = bootstrap(rows, None, [""] * 100, task.corpus_metric, B=500)
    assert spread.value == pytest.approx(found["r_mean"], abs=1e-9)
    assert spread.low < spread.value < spread.high


def module_sample(n: int) -> Any:
    from vlbench.task import Sample

    return Sample(str(n), (Path(f"{n}.jpg"),), target=str(n), texts=tuple(texts(n)[:5]))


def test_real_photographs_and_captions(shared: Path, tmp_path: Path) -> None:
    folder = there(shared / "data/coco_val2017_mini")
    (tmp_path / "val2017").symlink_to(folder / "images")
    (tmp_path / "coco_karpathy_test.json").symlink_to(folder / "coco_karpathy_format_mini.json")
    task = make("coco", tmp_path)
    assert task.missing("test") == []
    samples = task.samples("test")
    assert (len(samples), sum(len(s.texts) for s in samples)) == (204, 1020)
    assert all(s.images[0].stat().st_size for s in samples)
    assert samples[0].id == "139"
    assert samples[0].texts[0] == "A woman stands in the dining area at the table."


@pytest.mark.parametrize(("name", "file", "captions"), [("coco", "mscoco", 25_010), ("flickr30k", "flickr30k", 5_000)])
def test_the_real_test_split(shared: Path, tmp_path: Path, name: str, file: str, captions: int) -> None:
    source = shared / f"data/coco_karpathy/{file}_test.json"
    target = tmp_path / ("coco_karpathy_test.json" if name == "coco" else "flickr30k_test.json")
    target.symlink_to(source)
    folder = tmp_path / ("val2014" if name == "coco" else "flickr30k-images")
    folder.mkdir()
    rows = json.loads(source.read_text())[:300]
    target.unlink()
    target.write_text(json.dumps(rows))
    for row in rows:
        (folder / row["image_name"]).touch()
    samples = make(name, tmp_path).samples("test")
    assert [list(s.texts) for s in samples] == [row["captions"] for row in rows]
    assert sum(len(row["captions"]) for row in json.loads(source.read_text())) == captions
