"""The captioning task on Karpathy's, BLIP's and the official layout made here, and on 204 real photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.beside import there
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.task import digest_samples, refuse_report_ids

# Karpathy's split -> its images
IMAGES = {"train": (1, 2, 3), "restval": (50,), "val": (101, 102), "test": (201, 202, 203)}
SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def make(root: Path, **options: Any) -> Any:
    cls = table("tasks").get("coco_caption").load()
    return cls(root, cls.Options(**options))


def numbers(split: str) -> list[int]:
    return [n for part in SPLITS[split] for n in IMAGES[part]]


def texts(n: int) -> list[str]:
    """Five captions, six of every third image, with blanks around as in the originals."""
    return [f" Caption {k} of {n}. " for k in range(5 + (n % 3 == 0))]


def image_name(n: int) -> str:
    year = "train2014" if n < 50 else "val2014"
    return f"{year}/COCO_{year}_{n:012d}.jpg"


def touch_images(folder: Path) -> None:
    for n in (n for split in SPLITS for n in numbers(split)):
        (folder / image_name(n)).parent.mkdir(parents=True, exist_ok=True)
        (folder / image_name(n)).touch()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_blip(root: Path) -> Path:
    touch_images(root)
    for split in SPLITS:
        found = [(image_name(n), texts(n)) for n in numbers(split)]
        rows = [{"image": image, "caption": captions} for image, captions in found]
        if split == "train":  # a row a caption, those of an image not together
            rows = [{"image": i, "caption": t[k], "image_id": i} for k in range(6) for i, t in found if k < len(t)]
        write(root / f"coco_karpathy_{split}.json", rows)
    return root


def write_karpathys(root: Path) -> Path:
    """Sentence ids count from 200, so that some are those of images."""
    touch_images(root)
    rows, sentence = [], 200
    for split, images in IMAGES.items():
        for n in images:
            image, found = Path(image_name(n)), texts(n)
            sentences = [{"raw": text, "sentid": sentence + k, "tokens": ["x"]} for k, text in enumerate(found)]
            sentence += len(found)
            row = {"cocoid": n, "filepath": image.parent.name, "filename": image.name, "split": split}
            rows.append({**row, "sentences": sentences, "sentids": [s["sentid"] for s in sentences]})
    write(root / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    return root


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    write(path, change(content) or content)


@pytest.mark.parametrize("layout", [write_blip, write_karpathys])
def test_evaluated_are_images_with_all_their_captions(layout: Any, tmp_path: Path) -> None:
    task = make(layout(tmp_path))
    for split in ("test", "val"):
        assert task.missing(split) == []
        samples = task.samples(split)
        assert [s.id for s in samples] == [str(n) for n in numbers(split)]
        assert [s.target for s in samples] == [texts(n) for n in numbers(split)]
        assert all(s.images[0].is_file() and len(s.images) == 1 and s.cluster == s.text == "" for s in samples)


@pytest.mark.parametrize("layout", [write_blip, write_karpathys])
def test_trained_on_are_the_captions_of_train_and_restval(layout: Any, tmp_path: Path) -> None:
    task = make(layout(tmp_path))
    assert task.missing("train") == []
    samples = task.samples("train")
    assert [s.target for s in samples] == [text for n in numbers("train") for text in texts(n)]
    assert [s.cluster for s in samples] == [str(n) for n in numbers("train") for _ in texts(n)]
    assert [s.images for s in samples] == [(tmp_path / image_name(n),) for n in numbers("train") for _ in texts(n)]
    assert len({s.id for s in samples}) == len(samples)
    for split in ("train", "val"):
        refuse_report_ids(task, task.samples(split))  # Karpathy's sentence 201 is no image 201


@pytest.mark.parametrize("layout", [write_blip, write_karpathys])
def test_files_in_subfolders_are_the_same_split(layout: Any, tmp_path: Path) -> None:
    flat, nested = layout(tmp_path / "flat"), layout(tmp_path / "nested")
    for path in list(nested.iterdir()):
        folder = nested / ("annotations" if path.suffix == ".json" else "images")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    for split in SPLITS:
        assert make(nested).missing(split) == []
        assert digest_samples(make(nested).samples(split)) == digest_samples(make(flat).samples(split))


def test_blips_own_reference_files_are_used_where_they_lie_beside(tmp_path: Path) -> None:
    write_blip(tmp_path)
    rows = [{"image_id": n, "id": 10 * n + k, "caption": f"{k}"} for k in range(2) for n in (203, 202, 201, 999)]
    write(tmp_path / "coco_karpathy_test_gt.json", {"annotations": rows, "images": []})
    assert [s.target for s in make(tmp_path).samples("test")] == [["0", "1"]] * 3
    assert [s.target for s in make(tmp_path).samples("val")] == [texts(n) for n in numbers("val")]
    write(tmp_path / "coco_karpathy_test_gt.json", {"annotations": rows[1:3]})
    with pytest.raises(UserError, match=r"test_gt\.json lacks captions of images: 203\."):
        make(tmp_path).samples("test")


def test_roles_options_and_settings(tmp_path: Path) -> None:
    task = make(tmp_path)
    assert (task.data, task.capability, task.metric, task.version, task.corpus) == (
        "coco",
        "caption",
        "cider",
        1,
        False,
    )
    assert task.roles() == {"train": "train", "select": "val", "report": "test"}
    assert task.report_splits() == ("test", "val")
    decoding = {"beams": 3, "max_length": 20, "min_length": 5, "prompt": "a picture of "}
    assert task.settings("test") == decoding
    assert make(tmp_path, beams="5", prompt="").settings("val") == {**decoding, "beams": 5, "prompt": ""}
    for wrong in ({"beams": 0}, {"max_length": 0}, {"min_length": -1}, {"split": "x"}):
        with pytest.raises(ValidationError):
            make(tmp_path, **wrong)
    with pytest.raises(UserError, match=r"no split 'tests'\. Did you mean 'test'"):
        task.samples("tests")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    sentences = make(tmp_path).missing("train")
    assert len(sentences) == 3
    assert "dataset_coco.json" in sentences[0]
    assert "coco_karpathy_train.json" in sentences[0]
    assert [name in text for name, text in zip(("train2014", "val2014"), sentences[1:], strict=True)] == [True, True]
    with pytest.raises(UserError, match=r"dataset_coco\.json"):
        make(tmp_path).samples("train")
    write_blip(tmp_path)
    (tmp_path / image_name(202)).unlink()
    with pytest.raises(UserError, match=r"lacks images: val2014/COCO_val2014_000000000202\.jpg\."):
        make(tmp_path).samples("test")


@pytest.mark.parametrize("layout", [write_blip, write_karpathys])
@pytest.mark.parametrize("place", ["", "images"])
def test_another_year_of_coco_is_told(layout: Any, place: str, tmp_path: Path) -> None:
    layout(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / "val2014").rename(tmp_path / place / "val2017")
    sentences = make(tmp_path).missing("test")
    assert len(sentences) == 1
    assert "val2014 should hold the images of val2014: the val2017 that is there is COCO 2017" in sentences[0]
    with pytest.raises(UserError, match="the val2017 that is there is COCO 2017"):
        make(tmp_path).samples("test")


def set_item(index: Any, key: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        (content["images"] if isinstance(content, dict) else content)[index][key] = value

    return change


BAD_BLIP = {
    "cut": ("[{", "is not JSON, or cut short"),
    "empty": ([], "should be a JSON list of images"),
    "object": ({"images": []}, "should be a JSON list of images"),
    "row": (lambda rows: [*rows, 3], r"entry 3 is not valid: TypeError"),
    "no captions": (set_item(0, "caption", []), "images without a caption in test: 201"),
    "no key": (lambda rows: [*rows, {"image": "val2014/x1.jpg"}], "entry 3 is not valid: KeyError"),
    "number": (set_item(1, "caption", [3]), "3 is no text"),
    "twice": (lambda rows: [*rows, rows[0]], "has images twice in test: 201"),
    "outside": (set_item(0, "image", "../val2014/COCO_val2014_000000000201.jpg"), "no file inside the data folder"),
    "inside out": (set_item(0, "image", "val2014/../../x/1.jpg"), "no file inside the data folder"),
    "absolute": (set_item(0, "image", "/val2014/COCO_val2014_000000000201.jpg"), "no file inside the data folder"),
    "nameless": (set_item(0, "image", ""), "no file inside the data folder"),
    "no number": (set_item(0, "image", "val2014/cat.jpg"), "does not end in COCO's number"),
    "no image": (set_item(0, "image", None), "entry 0 is not valid"),
}


@pytest.mark.parametrize("name", BAD_BLIP)
def test_bad_blip_files(name: str, tmp_path: Path) -> None:
    change, message = BAD_BLIP[name]
    path = write_blip(tmp_path) / "coco_karpathy_test.json"
    if callable(change):
        edit(path, change)
    else:
        write(path, change)
    with pytest.raises(UserError, match=message):
        make(tmp_path).samples("test")


SENTENCE = {"raw": "Two dogs.", "sentid": 7, "tokens": []}
BAD_KARPATHY = {
    "list": ([], "has no list 'images'"),
    "other splits": ({"images": []}, "has no images of test"),
    "no captions": (set_item(-1, "sentences", []), "images without a caption in test: 203"),
    "sentence": (set_item(-1, "sentences", [{"tokens": []}]), "image 2 of the split is not valid"),
    "ids twice": (set_item(-1, "sentences", [SENTENCE, SENTENCE]), "has caption ids twice in test: 7"),
    "image twice": (
        lambda c: c["images"][-1].update(cocoid=202, filename="COCO_val2014_000000000202.jpg"),
        "has images twice in test: 202",
    ),
    "another's": (set_item(-1, "cocoid", 202), "of image 202 and names the file val2014/COCO_val2014_000000000203.jpg"),
    "outside": (set_item(-1, "filepath", "../val2014"), "no file inside the data folder"),
    "not flickr": (lambda c: [row.pop("cocoid") for row in c["images"]] and None, "is not valid: KeyError"),
}


@pytest.mark.parametrize("name", BAD_KARPATHY)
def test_bad_karpathy_files(name: str, tmp_path: Path) -> None:
    change, message = BAD_KARPATHY[name]
    path = write_karpathys(tmp_path) / "dataset_coco.json"
    if callable(change):
        edit(path, change)
    else:
        write(path, change)
    with pytest.raises(UserError, match=message):
        make(tmp_path).samples("test")


def own(folder: Path) -> Any:
    """The task with the user's own captions: image 9 has two, image 8 has one, image 7 has none."""
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in (9, 7, 8)]
    rows = [(1, 8, "A cat."), (2, 9, "A dog."), (3, 9, "Dogs.")]
    annotations = [{"id": i, "image_id": n, "caption": text} for i, n, text in rows]
    path = write(folder / "mine.json", {"images": images, "annotations": annotations, "info": {}})
    for row in images:
        write(folder / "photos" / str(row["file_name"]), "")
    return make(folder / "none", annotations=path, images=folder / "photos")


def test_own_captions_stand_for_the_report_split(tmp_path: Path) -> None:
    task = own(tmp_path)
    assert task.missing("test") == []
    samples = task.samples("test")
    assert [(s.id, s.images[0].name, s.target) for s in samples] == [
        ("9", "9.jpg", ["A dog.", "Dogs."]),
        ("8", "8.jpg", ["A cat."]),
    ]
    assert len(task.missing("train")) == 3
    options = {"annotations": tmp_path / "mine.json", "images": tmp_path / "photos"}
    for name in options:
        with pytest.raises(UserError, match="both annotations=FILE and images=FOLDER"):
            make(tmp_path, **{name: options[name]}).missing("test")
    (tmp_path / "mine.json").unlink()
    (tmp_path / "photos").rename(tmp_path / "pictures")
    assert [("annotations=" in text, "images=" in text) for text in task.missing("test")] == [
        (True, False),
        (False, True),
    ]


def put(key: str, **values: Any) -> Callable[[Any], None]:
    return lambda content: content[key].append(values)


BAD_OWN = {
    "unknown image": (
        put("annotations", id=4, image_id=6, caption="x"),
        "captions of images that its list .* lacks: 6",
    ),
    "ids twice": (put("annotations", id=3, image_id=8, caption="x"), "has annotation ids twice: 3"),
    "no text": (put("annotations", id=4, image_id=8, caption=None), "entry 3 of 'annotations' is not valid"),
    "no image id": (put("annotations", id=4, caption="x"), "entry 3 of 'annotations' is not valid: KeyError"),
    "image twice": (put("images", id=9, file_name="9.jpg"), "has image ids twice: 9"),
    "no file": (put("images", id=10), "entry 3 of 'images' is not valid"),
    "outside": (lambda c: c["images"][0].update(file_name="../9.jpg"), "no file inside the data folder"),
    "lacking": (lambda c: c["images"][0].update(file_name="5.jpg"), "photos lacks images: 9"),
    "no annotations": (lambda c: c.pop("annotations") and None, "has no list 'annotations'"),
    "no captions": (lambda c: c["annotations"].clear(), "has no list 'annotations'"),
    "no images": (lambda c: c.pop("images") and None, "has no list 'images'"),
}


@pytest.mark.parametrize("name", BAD_OWN)
def test_bad_own_captions(name: str, tmp_path: Path) -> None:
    change, message = BAD_OWN[name]
    task = own(tmp_path)
    edit(tmp_path / "mine.json", change)
    with pytest.raises(UserError, match=message):
        task.samples("test")
    write(tmp_path / "mine.json", "[1, 2")
    with pytest.raises(UserError, match="is not JSON, or cut short"):
        task.samples("test")


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_java")
def test_real_photographs_have_the_official_scores(shared: Path, tmp_path: Path) -> None:
    """Without Java, METEOR and SPICE have a reason and no number."""
    folder = there(shared / "data/coco_val2017_mini")
    task = make(tmp_path, annotations=folder / "captions_val2017_mini.json", images=folder / "images")
    assert task.missing("test") == []
    samples = task.samples("test")
    assert (len(samples), sum(len(s.target) for s in samples)) == (204, 1021)
    oracles = shared / "oracles/metrics/caption"
    said = {str(row["image_id"]): row for row in json.loads((oracles / "predictions_a.json").read_text())["tricky"]}
    official = json.loads((oracles / "results_a.json").read_text())["tricky"]
    scores = json.loads(json.dumps(task.scores(samples, [{"caption": said[s.id]["caption"]} for s in samples])))
    found = task.aggregate(samples, scores)
    assert found == pytest.approx(
        {
            "cider": 100 * official["CIDEr"],
            **{f"bleu{n}": 100 * official[f"Bleu_{n}"] for n in range(1, 5)},
            "rouge_l": 100 * official["ROUGE_L"],
        },
        rel=1e-6,
    )
    assert found["cider"] == pytest.approx(100 * sum(row[0] for row in scores) / 204)
    assert task.unmeasured().keys() == {"meteor", "spice"} == task.metrics.keys() - found.keys()
    assert set(task.metrics.values()) == {"higher"}


def test_a_program_that_fails_late_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = write(tmp_path / "bin/java", "#!/bin/sh\necho no memory >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}:/usr/bin:/bin")
    task = own(tmp_path)
    samples = task.samples("test")
    assert "meteor" not in task.unmeasured()
    scores = task.scores(samples, [{"caption": "a dog"}, {"caption": "a bird"}])
    assert "meteor" not in task.aggregate(samples, scores)
    assert task.unmeasured()["meteor"] == "METEOR's Java failed (exit status 1): no memory."
