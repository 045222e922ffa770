"""Oracle: the official script on 6,982 real sentences with three prediction files; layouts made here."""

from __future__ import annotations

import csv
import importlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pydantic import ValidationError

from tests.beside import there
from vlbench.errors import UserError
from vlbench.task import Sample, digest_samples

module = importlib.import_module("vlbench.tasks.nlvr2")
NLVR2, NLVR2Options = module.NLVR2, module.NLVR2Options

FILES = {"train": "train.json", "dev": "dev.json", "test1": "test1.json", "test2": "test2.json"}


def example(identifier: str, sentence: str = "Two dogs.", label: Any = "True", **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": sentence, "label": label, **more}


def official(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def blip(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def touch(folder: Path, pairs: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        for side in (0, 1):
            (folder / f"{pair}-img{side}.png").touch()


def pairs_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({row["identifier"].rpartition("-")[0] for row in rows})


ROWS = [
    example(f"dev-{group}-{pair}-{n}", f"Sentence {n} of {group}.", label)
    for group in (3, 12)
    for n in (1, 0)
    for pair, label in ((2, "True"), (0, "False"))
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small dev split in the official layout."""
    official(tmp_path / "data/dev.json", ROWS)
    touch(tmp_path / "images/dev", pairs_of(ROWS))
    return tmp_path


def make(root: Path, **options: Any) -> Any:
    return NLVR2(root, NLVR2Options(**options))


@pytest.fixture
def real(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of dev and test1, and test1 once more as BLIP has it (blip/). Their 16,000 photographs count as there."""

    def find_all(root: Path, split: str) -> Callable[[PurePosixPath], Path]:
        return lambda image: root / "images" / split / image.name

    monkeypatch.setattr(module, "_finder", find_all)
    source = there(shared / "data/nlvr2")
    (tmp_path / "data").symlink_to(source / "annotations")
    (tmp_path / "blip").symlink_to(source / "albef_format")
    return tmp_path


@pytest.mark.parametrize("name", ["pred_p50_a.csv", "pred_p80_a.csv", "pred_p95_a.csv"])
def test_real_predictions_score_as_the_official_script_has_it(real: Path, shared: Path, name: str) -> None:
    folder = shared / "oracles/metrics/nlvr2"
    oracle = json.loads((folder / "results_a.json").read_text())[name]
    with (folder / name).open(newline="") as file:
        said = {identifier: word.lower() == "true" for identifier, word in csv.reader(file)}
    task = make(real)
    samples = task.samples("dev")
    scores = [task.score(sample, {"answer": said[sample.id]}) for sample in samples]
    assert len(samples) == 6982
    assert sum(scores) == oracle["n_correct"]
    assert task.aggregate(samples, scores) == pytest.approx(
        {"accuracy": 100 * oracle["accuracy"], "consistency": 100 * oracle["consistency"]}, rel=1e-12
    )
    share = module.consistency([s.id for s in samples], [score == 1 for score in scores])
    assert share == oracle["n_consistent_groups"] / oracle["n_groups"] == oracle["consistency"]


def test_clusters_are_the_sets_of_photographs(real: Path) -> None:
    samples = make(real).samples("dev")
    assert len({s.cluster for s in samples}) == 1054
    assert all(s.id.startswith(f"{s.cluster}-") for s in samples)
    assert samples[0].cluster == "dev-850"
    assert samples[0].target is False
    assert [p.relative_to(real).as_posix() for p in samples[0].images] == [
        "images/dev/dev-850-0-img0.png",
        "images/dev/dev-850-0-img1.png",
    ]


def test_blips_rows_are_the_official_ones_with_made_up_sentence_numbers(real: Path) -> None:
    theirs, ours = make(real).samples("test1"), make(real / "blip").samples("test1")

    def shown(samples: Sequence[Sample]) -> list[Any]:
        return [(s.cluster, s.text, s.target, [p.name for p in s.images]) for s in samples]

    def groups(samples: Sequence[Sample]) -> list[list[int]]:
        found = defaultdict(list)
        for number, sample in enumerate(samples):
            split, group, _, sentence = sample.id.split("-")
            found[split, group, sentence].append(number)
        return list(found.values())

    assert shown(theirs) == shown(ours)
    assert groups(theirs) == groups(ours)
    assert len({s.id for s in ours}) == len(ours) == 6967
    draws = random.Random(0)
    right = [draws.random() < 0.9 for _ in ours]
    scores = [float(r) for r in right]
    assert make(real).aggregate(theirs, scores) == make(real).aggregate(ours, scores)


def test_real_photographs_are_found(shared: Path, tmp_path: Path) -> None:
    source = there(shared / "data/nlvr2")
    (tmp_path / "images").symlink_to(source / "images")
    text = (source / "annotations/dev.json").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    official(tmp_path / "dev.json", [row for row in rows if row["identifier"].startswith("dev-850-")])
    task = make(tmp_path)
    assert task.missing("dev") == []
    listed = task.samples("dev")
    assert len(listed) == 8
    assert all(path.stat().st_size > 0 for s in listed for path in s.images)
    (tmp_path / "dev.json").unlink()
    (tmp_path / "nlvr_dev.json").symlink_to(source / "albef_format/nlvr_dev_mini.json")
    assert sorted((s.id, s.text, s.target) for s in task.samples("dev")) == sorted(
        (s.id, s.text, s.target) for s in listed
    )


@pytest.mark.parametrize("place", ["data", "annotations", "annotation", "."])
@pytest.mark.parametrize("images", ["images/dev", "dev"])
def test_layouts_are_equal(tmp_path: Path, root: Path, place: str, images: str) -> None:
    other = tmp_path / "other"
    official(other / place / "dev.json", ROWS)
    touch(other / images, pairs_of(ROWS))
    task = make(other)
    assert task.missing("dev") == []
    assert digest_samples(task.samples("dev")) == digest_samples(make(root).samples("dev"))
    assert [s.id for s in task.samples("dev")] == [row["identifier"] for row in ROWS]


@pytest.mark.parametrize("place", ["images/train/7", "images/train", "train/7", "train"])
def test_training_images_lie_in_numbered_folders_or_not(tmp_path: Path, place: str) -> None:
    official(tmp_path / "data/train.json", [example("train-5-1-0", directory=7)])
    touch(tmp_path / place, ["train-5-1"])
    blip(tmp_path / "blip/nlvr_train.json", [blip_row("train-5-1", folder="images/train/7")])
    (tmp_path / "blip" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "blip" / place).symlink_to(tmp_path / place)
    for root in (tmp_path, tmp_path / "blip"):
        assert make(root).missing("train") == []
        sample = make(root).samples("train")[0]
        assert sample.images == tuple(root / place / f"train-5-1-img{side}.png" for side in (0, 1))
        assert sample.id == "train-5-1-0"


def blip_row(pair: str, sentence: str = "Two dogs.", folder: str = "dev", label: Any = "True") -> dict[str, Any]:
    images = [f"{folder}/{pair}-img0.png", f"{folder}/{pair}-img1.png"]
    return {"images": images, "sentence": sentence, "label": label}


def test_made_up_sentence_numbers(tmp_path: Path) -> None:
    """By first appearance in the set; a pair with one sentence twice is two examples of two groups."""
    given = [("dev-1-0", "b"), ("dev-1-1", "a"), ("dev-1-1", "b"), ("dev-2-0", "a"), ("dev-1-1", "a"), ("dev-1-0", "a")]
    blip(tmp_path / "nlvr_dev.json", [blip_row(pair, sentence) for pair, sentence in given])
    touch(tmp_path / "dev", ["dev-1-0", "dev-1-1", "dev-2-0"])
    assert [s.id for s in make(tmp_path).samples("dev")] == [
        "dev-1-0-0", "dev-1-1-1", "dev-1-1-0", "dev-2-0-0", "dev-1-1-2", "dev-1-0-1",
    ]  # fmt: skip


def test_the_official_file_comes_first(root: Path) -> None:
    blip(root / "nlvr_dev.json", [blip_row("dev-3-0")])
    assert len(make(root).samples("dev")) == len(ROWS)


def test_roles_and_splits(root: Path) -> None:
    task = make(root)
    assert task.roles() == {"train": "train", "select": "dev", "report": "test1"}
    assert task.report_splits() == ("test1", "dev", "test2")
    assert task.labelled("test2")
    assert task.settings("test1") == {}
    with pytest.raises(UserError, match=r"no split 'test'. Did you mean 'test[12]'"):
        task.samples("test")
    with pytest.raises(ValidationError):
        NLVR2Options(order="random")


def test_scores(root: Path) -> None:
    task = make(root)
    first, second = task.samples("dev")[:2]
    assert (first.target, second.target) == (True, False)
    assert [task.score(s, {"answer": a}) for s in (first, second) for a in (True, False)] == [1, 0, 0, 1]
    scores = [1, 1, 1, 0, 1, 1, 1, 1]  # of four groups of two the second has a mistake
    assert task.aggregate(task.samples("dev"), scores) == {"accuracy": 87.5, "consistency": 75}


def test_a_group_is_all_pairs_of_a_sentence() -> None:
    identifiers = ["dev-1-0-0", "dev-1-3-0", "dev-1-0-1", "dev-11-0-0", "test1-1-0-0"]
    assert module.consistency(identifiers, [True] * 5) == 1
    assert module.consistency(identifiers, [False, True, True, True, True]) == 0.75
    assert module.consistency(identifiers, [True, True, False, True, True]) == 0.75


def test_reference_order_swaps_half_of_the_pairs_for_good(real: Path) -> None:
    plain, swapped = make(real).samples("dev"), make(real, order="reference-random").samples("dev")
    assert digest_samples(swapped) == digest_samples(make(real, order="reference-random").samples("dev"))
    assert digest_samples(swapped) != digest_samples(make(real, order="reference-random", order_seed=1).samples("dev"))
    turned = 0
    for before, after in zip(plain, swapped, strict=True):
        assert (before.id, before.target, before.cluster) == (after.id, after.target, after.cluster)
        if before.images == after.images:
            assert before.text == after.text
        else:
            turned += 1
            assert after.images == before.images[::-1]
            assert after.text == module.exchange_sides(before.text)
    assert 3300 < turned < 3700
    seven = [s for s in make(real, order="reference-random").samples("dev") if s.id in {p.id for p in plain[:7]}]
    assert seven == swapped[:7]


def pre_caption(text: str) -> list[str]:
    """The words that BLIP's data/utils.py makes of a sentence, written again."""
    for mark in '.!"()*#:;~':
        text = text.lower().replace(mark, " ")
    return text.split()


def test_words_are_exchanged_as_blip_does_it_to_its_words(real: Path) -> None:
    other = {"left": "right", "right": "left"}
    changed = 0
    for sample in make(real).samples("dev"):
        expected = [other.get(word, word) for word in pre_caption(sample.text)]
        found = module.exchange_sides(sample.text)
        assert pre_caption(found) == expected
        assert module.exchange_sides(found) == sample.text
        changed += found != sample.text
    assert changed > 2000
    text = 'Left: the LEFT dog. "left" (right) upright left-hand left, bright~right\nlefts'
    assert module.exchange_sides(text) == (
        'Right: the RIGHT dog. "right" (left) upright left-hand left, bright~left\nlefts'
    )


def test_the_digest_is_that_of_what_is_shown(root: Path, tmp_path: Path) -> None:
    before = digest_samples(make(root).samples("dev"))
    official(root / "data/dev.json", [{**ROWS[0], "label": "False"}, *ROWS[1:]])
    assert digest_samples(make(root).samples("dev")) != before


def test_missing_names_each_file(tmp_path: Path) -> None:
    for split, words in (("test1", "nlvr_test.json"), ("test2", "test2.json")):
        annotations, images = make(tmp_path).missing(split)
        assert str(tmp_path / "data") in annotations
        assert FILES[split] in annotations
        assert words in annotations
        assert str(tmp_path / "images" / split) in images
        with pytest.raises(UserError, match=f"should hold the official {split}.json"):
            make(tmp_path).samples(split)


def test_absent_images_are_named(root: Path) -> None:
    for pair in ("dev-3-0", "dev-12-2"):
        (root / f"images/dev/{pair}-img1.png").unlink()
    with pytest.raises(UserError, match=r"lacks images of dev: dev-3-0-img1\.png, dev-12-2-img1\.png\."):
        make(root).samples("dev")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"identifier": "dev-3-0-0", "sentence": "x"}, "line 3 is not valid: KeyError.'label'"),
        (example("dev-3-0"), "line 3 .*SPLIT-SET-PAIR-SENTENCE"),
        (example("dev-3-0-0", label="maybe"), "line 3 .*'maybe' is neither True nor False"),
        (example("dev-3-0-0", label=None), "line 3 .*neither True nor False"),
        (example("dev-3-0-0", sentence=7), "line 3 .*7 is no text"),
        (example("dev-3-0-0", directory="../../etc"), "no file inside the data folder"),
        ([1], "line 3 is not valid"),
        (7, "line 3 is not valid"),
        (ROWS[1], "identifiers twice: dev-3-0-1"),
    ],
)
def test_a_broken_line_is_named(root: Path, row: Any, problem: str) -> None:
    official(root / "data/dev.json", [ROWS[0], ROWS[1], row])
    with pytest.raises(UserError, match=f"dev.json.*{problem}"):
        make(root).samples("dev")


def test_a_torn_or_empty_file_is_named(root: Path) -> None:
    path = root / "data/dev.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"dev\.json: line 8 is not valid"):
        make(root).samples("dev")
    path.write_text("\n")
    with pytest.raises(UserError, match=r"dev\.json is empty"):
        make(root).samples("dev")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"dev\.json cannot be read"):
        make(root).samples("dev")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[", "is not JSON"),
        ("{}", "should be a JSON list"),
        ("[]", "should be a JSON list"),
        ("[7]", "entry 0 is not valid"),
        (json.dumps([blip_row("dev-1-0") | {"images": ["dev/dev-1-0-img0.png"]}]), "entry 0 is not valid"),
        (json.dumps([blip_row("dev-1-0") | {"images": ["dev/a.png", "dev/b.png"]}]), "SPLIT-SET-PAIR-img0.png"),
        (
            json.dumps([blip_row("dev-1-0") | {"images": ["dev/dev-1-0-img0.png", "dev/dev-1-1-img1.png"]}]),
            "not the two images",
        ),
        (json.dumps([blip_row("dev-1-0", folder="../x")]), "no file inside the data folder"),
        (json.dumps([blip_row("dev-1-0", label=1)]), "neither True nor False"),
    ],
)
def test_a_broken_blip_file_is_named(tmp_path: Path, content: str, problem: str) -> None:
    touch(tmp_path / "dev", ["dev-1-0"])
    (tmp_path / "nlvr_dev.json").write_text(content)
    with pytest.raises(UserError, match=f"nlvr_dev.json.*{problem}"):
        make(tmp_path).samples("dev")
