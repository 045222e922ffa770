"""nocaps' reader on its official layout, made here as the published file is, and its metrics by domain against those of
each domain's images alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.task import refuse_report_ids

DOMAINS = ("in-domain", "near-domain", "out-domain", "in-domain", "near-domain", "out-domain")
CAPTIONS = (
    ("a red kite over the sea", "a kite in the sky"),
    ("two men beside a canoe", "men with a canoe on a beach"),
    ("an accordion on a table", "a red accordion"),
    ("a dog on the beach", "a brown dog near the sea"),
    ("a woman plays a harp", "a woman with a harp on a stage"),
    ("a jellyfish in dark water", "a white jellyfish"),
)
SAID = ("a kite over the sea", "a canoe", "an accordion on a chair", "a cat", "a woman plays a harp", "a jellyfish")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [
        {
            "id": n, "file_name": f"{n:016x}.jpg", "domain": domain, "open_images_id": f"{n:016x}", "license": 0,
            "width": 64, "height": 64,
        }
        for n, domain in enumerate(DOMAINS)
    ]  # fmt: skip
    annotations = [
        {"id": 10 * n + k, "image_id": n, "caption": text}
        for n, texts in enumerate(CAPTIONS)
        for k, text in enumerate(texts)
    ]
    content = {"licenses": [], "info": {}, "images": images, "annotations": annotations}
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for row in images:
        (tmp_path / "images" / str(row["file_name"])).touch()
    rows = []
    for number, (split, image) in enumerate((("train", 1), ("restval", 2), ("val", 3))):
        sentences = [{"raw": f"caption {k} of {image}", "sentid": 10 * number + k} for k in range(2)]
        rows.append(
            {
                "filepath": "val2014", "filename": f"COCO_val2014_{image:012d}.jpg", "cocoid": image, "split": split,
                "sentences": sentences, "imgid": number, "sentids": [s["sentid"] for s in sentences],
            }
        )  # fmt: skip
        (tmp_path / "coco" / "val2014").mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco" / "val2014" / f"COCO_val2014_{image:012d}.jpg").touch()
    (tmp_path / "coco" / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    return tmp_path


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR and SPICE are tested elsewhere."""
    monkeypatch.setenv("PATH", "")


def make(root: Path, **options: Any) -> Any:
    cls = table("tasks").get("nocaps").load()
    return cls(root, cls.Options(**options))


def test_samples(root: Path) -> None:
    task = make(root)
    found = {split: task.samples(split) for split in ("train", "select", "val")}
    assert [s.id for s in found["val"]] == [str(n) for n in range(6)]
    assert found["val"][1].target == list(CAPTIONS[1])
    assert found["val"][1].images == (root / "images" / f"{1:016x}.jpg",)
    assert [s.target for s in found["train"]] == [f"caption {k} of {i}" for i in (1, 2) for k in (0, 1)]
    assert [s.target for s in found["select"]] == [["caption 0 of 3", "caption 1 of 3"]]
    refuse_report_ids(task, found["train"])
    assert task.missing("val") == task.missing("train") == task.missing("select") == []
    assert set(task.groups(found["val"]).values()) == {"in", "near", "out"}
    assert task.groups(found["train"]) == {}


def test_a_domain_is_evaluated_by_itself(root: Path) -> None:
    """CIDEr weighs n-grams by the images they are in: a domain's is that of a set of its images alone."""
    task = make(root)
    samples = task.samples("val")
    scores = task.scores(samples, [{"caption": text} for text in SAID])
    found = task.aggregate(samples, scores)
    coco = table("tasks").get("coco_caption").load()
    plain = coco(root, coco.Options())
    whole = plain.aggregate(samples, plain.scores(samples, [{"caption": text} for text in SAID]))
    assert {k: v for k, v in found.items() if "/" not in k} == pytest.approx(whole)
    for domain in ("in", "near", "out"):
        rows = [i for i in range(6) if DOMAINS[i] == f"{domain}-domain"]
        own = [samples[i] for i in rows]
        alone = plain.aggregate(own, plain.scores(own, [{"caption": SAID[i]} for i in rows]))
        assert found[f"cider/{domain}"] == pytest.approx(alone["cider"])
        assert found[f"cider/{domain}"] != pytest.approx(whole["cider"], abs=1e-3)
    assert "spice/in" not in found
    assert {"spice", "spice/in", "spice/near", "spice/out", "meteor"} <= task.unmeasured().keys()


def test_spice_by_domain(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the domain's images, where it was measured."""
    task = make(root)
    samples = task.samples("val")
    scores = task.scores(samples, [{"caption": text} for text in SAID])
    with_spice = [[*one[:-1], 0.1 * n, one[-1]] for n, one in enumerate(scores)]
    found = task.aggregate(samples, with_spice)
    assert found["spice"] == pytest.approx(25.0)
    assert [found[f"spice/{d}"] for d in ("in", "near", "out")] == pytest.approx([15.0, 25.0, 35.0])


def test_the_select_split_has_no_domains(root: Path) -> None:
    task = make(root)
    samples = task.samples("select")
    found = task.aggregate(samples, task.scores(samples, [{"caption": "caption 0 of 3"}]))
    assert found["rouge_l"] > 0
    assert not any("/" in name for name in found)


def test_settings(root: Path) -> None:
    told = make(root, beams=2).settings("val")
    assert told == {"beams": 2, "max_length": 30, "min_length": 8, "prompt": "a photo of "}


def test_what_is_missing_is_told(root: Path) -> None:
    (root / "images").rename(root / "validation")
    assert make(root).missing("val") == []
    (root / "validation").rename(root / "elsewhere")
    assert make(root).missing("val") == [f"{root / 'images'} should hold the images of nocaps."]
    (root / "nocaps_val_4500_captions.json").unlink()
    assert len(make(root).missing("val")) == 2
    (root / "coco" / "dataset_coco.json").unlink()
    assert make(root).missing("train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"domain": "middle"}, "entry 0 of 'images' is not valid"),
        ({"file_name": "../x.jpg"}, "no file inside the data folder"),
        ({"id": 1}, "has image ids twice: 1"),
        ({"id": 77}, "has images without a caption: 77"),
        ({"file_name": "gone.jpg"}, "lacks images: 0"),
    ],
)
def test_a_damaged_file_is_told(root: Path, change: dict[str, Any], sentence: str) -> None:
    path = root / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    content["images"][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        make(root).samples("val")
