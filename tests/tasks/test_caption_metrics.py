"""Oracle: pycocoevalcap with its Java programs, recorded (shared/oracles/metrics/caption) and called here."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

metrics = importlib.import_module("vlbench.tasks._caption_metrics")
java = importlib.import_module("vlbench.tasks._java_metrics")

NAMES = {
    "cider": "CIDEr", "bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4",
    "rouge_l": "ROUGE_L", "meteor": "METEOR",
}  # fmt: skip
PREDICTIONS = ("loo_human", "shuffled", "generic", "tricky")
WORDS = "a the cat cats dog sits sat sitting on mat is big large man person walking walks street road red two".split()  # noqa: SIM905
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java (METEOR)")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def recorded(shared: Path, name: str) -> tuple[list[str], list[list[str]], list[str], Any]:
    """Image ids, references, captions and what the original said of them."""
    oracles = shared / "oracles/metrics/caption"
    if name == "loo_human":
        references = load(oracles / "refs_loo_a.json")
    else:
        references = {}
        rows = load(shared / "data/coco_val2017_mini/captions_val2017_mini.json")["annotations"]
        for row in sorted(rows, key=lambda row: row["id"]):
            references.setdefault(str(row["image_id"]), []).append(row["caption"])
    said = {str(row["image_id"]): row["caption"] for row in load(oracles / "predictions_a.json")[name]}
    return list(said), [references[i] for i in said], list(said.values()), load(oracles / "results_a.json")[name]


def random_set(images: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """Tokenised references and captions: some empty, some equal to a reference."""
    draw = random.Random(seed)
    references = [
        [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 6))] for _ in range(images)
    ]
    said = [" ".join(draw.choices(WORDS, k=draw.randint(0, 14))) for _ in range(images)]
    return references, [texts[0] if draw.random() < 0.2 else text for texts, text in zip(references, said, strict=True)]


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def fake_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that puts a Python program in Java's place."""

    def put(program: str) -> None:
        path = tmp_path / "bin/java"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\nfrom pathlib import Path\n{program}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.usefixtures("no_java")
@pytest.mark.parametrize("name", PREDICTIONS)
def test_recorded_results_without_java(shared: Path, name: str) -> None:
    ids, references, said, theirs = recorded(shared, name)
    found, reasons = metrics.measure(references, said)
    assert [len(numbers) for numbers in found] == [12] * 204
    assert reasons == {
        metric: f"{metric.upper()} needs Java: install a Java runtime (8 or later) whose java is on the PATH."
        for metric in ("meteor", "spice")
    }
    assert reasons == metrics.unmeasured()
    corpus = metrics.aggregate(found)
    assert corpus == pytest.approx({m: 100 * theirs[NAMES[m]] for m in NAMES if m != "meteor"}, rel=1e-9)
    for i, numbers in zip(ids, found, strict=True):
        image = theirs["per_image"][i]
        mine = [numbers[0], *metrics.bleu(numbers[1:11]), numbers[11]]
        assert mine == pytest.approx([image[NAMES[m]] for m in NAMES if m != "meteor"], rel=1e-9, abs=1e-12), i


@needs_java
@pytest.mark.slow
def test_recorded_meteor(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the locale; in one run of the program, as its start takes most of the time."""
    monkeypatch.setenv("LC_ALL", "C")
    sets = {name: recorded(shared, name) for name in PREDICTIONS}
    references = [[metrics._tokenised(t) for t in texts] for _, found, _, _ in sets.values() for texts in found]
    numbers = java.meteor_statistics(
        references, [metrics._tokenised(t) for _, _, said, _ in sets.values() for t in said]
    )
    for ids, _, _, theirs in sets.values():
        mine, numbers = numbers[: len(ids)], numbers[len(ids) :]
        assert java.meteor([sum(column) for column in zip(*mine, strict=True)]) == pytest.approx(
            theirs["METEOR"], rel=1e-9
        )
        each = {i: java.meteor(row) for i, row in zip(ids, mine, strict=True)}
        assert each == pytest.approx({i: theirs["per_image"][i]["METEOR"] for i in ids}, rel=1e-9, abs=1e-12)


@needs_java
@pytest.mark.slow
def test_meteor_is_the_programs_own_evaluation() -> None:
    """Also where captions equal a reference, whose chunk does not count in a corpus."""
    references, said = random_set(120, seed=1)
    lines = "".join(" ||| ".join(("SCORE", *texts, text)) + "\n" for texts, text in zip(references, said, strict=True))
    command = [*java.JAVA, "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command, cwd=java._folder("meteor"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(lines)
        process.stdin.flush()
        statistics = [process.stdout.readline().strip() for _ in said]
        process.stdin.write(" ||| ".join(("EVAL", *statistics)) + "\n")
        process.stdin.close()
        told = [float(line) for line in process.stdout]
    numbers = [java._summable([float(number) for number in line.split()]) for line in statistics]
    assert [java.meteor(row) for row in numbers] == pytest.approx(told[:-1], rel=1e-9, abs=1e-12)
    assert java.meteor([sum(column) for column in zip(*numbers, strict=True)]) == pytest.approx(told[-1], rel=1e-9)
    assert sum(row[4] == 0 < row[5] for row in numbers) > 10


@pytest.mark.parametrize("images", [1, 2, 60])
def test_random_texts_are_scored_as_pycocoevalcap_does(images: int) -> None:
    references, said = random_set(images, seed=images)
    theirs = (dict(enumerate(references)), {i: [text] for i, text in enumerate(said)})
    bleu, each_bleu = Bleu(4).compute_score(*theirs, verbose=0)
    numbers = [metrics.bleu_numbers(texts, text) for texts, text in zip(references, said, strict=True)]
    assert metrics.bleu([sum(column) for column in zip(*numbers, strict=True)]) == pytest.approx(bleu, rel=1e-9)
    mine = [metrics.bleu(row) for row in numbers]
    assert [list(row) for row in zip(*mine, strict=True)] == [
        pytest.approx(row, rel=1e-9, abs=1e-12) for row in each_bleu
    ]
    assert metrics.cider(references, said) == pytest.approx(list(Cider().compute_score(*theirs)[1]), abs=1e-12)
    rouge = [metrics.rouge_l(texts, text) for texts, text in zip(references, said, strict=True)]
    assert rouge == pytest.approx(list(Rouge().compute_score(*theirs)[1]), abs=1e-12)


@pytest.mark.usefixtures("no_java")
def test_fakecap_demo(shared: Path) -> None:
    """The official demo's captions, on the images of which the references are here."""
    told = load(shared / "oracles/metrics/caption/fakecap126_results.json")
    references: dict[int, list[str]] = {}
    for row in load(shared / "data/coco_val2017_mini/captions_val2017_full.json")["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    rows = load(shared / "data/caption_eval/captions_val2014_fakecap_results.json")
    said = {row["image_id"]: row["caption"] for row in rows if row["image_id"] in references}
    found = metrics.aggregate(metrics.measure([references[i] for i in said], list(said.values()))[0])
    theirs = told.get("results", told)
    assert len(said) == 126
    assert found == pytest.approx({m: 100 * theirs[NAMES[m]] for m in NAMES if m != "meteor"}, rel=1e-9)


def test_bleu_of_a_corpus_is_no_mean() -> None:
    references, said = random_set(40, seed=3)
    numbers = [metrics.bleu_numbers(texts, text) for texts, text in zip(references, said, strict=True)]
    whole = metrics.bleu([sum(column) for column in zip(*numbers, strict=True)])[3]
    assert abs(whole - fmean(metrics.bleu(row)[3] for row in numbers)) > 0.01


def test_of_equally_close_references_the_shorter_counts() -> None:
    assert metrics.bleu_numbers(["a b c d e", "a b c"], "a b c d")[-2:] == [4, 3]
    assert metrics.bleu_numbers(["a b", "a b", "a a"], "a a a") == [2, 1, 0, 0, 3, 2, 1, 0, 3, 2]


@pytest.mark.usefixtures("no_java")
def test_empty_captions_and_references() -> None:
    found = metrics.aggregate(metrics.measure([["A dog.", "Two dogs."], ["A cat."]], ["", "..."])[0])
    assert found == pytest.approx(dict.fromkeys(("cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"), 0), abs=1e-6)
    assert metrics.measure([["."], ["!"]], ["a dog", "a cat"])[0][0][0] == 0
    assert metrics.measure([["A dog."]], ["A dog."])[0][0][0] == 0  # CIDEr of one image
    assert metrics.aggregate([]) == {}
    with pytest.raises(ValueError):
        metrics.measure([["A dog."]], [])


@pytest.mark.usefixtures("no_java")
def test_cider_weighs_by_the_images_that_are_evaluated() -> None:
    references, said = random_set(30, seed=4)
    whole, part = metrics.cider(references, said), metrics.cider(references[:10], said[:10])
    assert max(abs(a - b) for a, b in zip(whole, part, strict=False)) > 0.01


@pytest.mark.parametrize(
    ("extra", "more"),
    [([], ()), ([0.5], ("spice",)), ([1.0] * 6, ("meteor",)), ([1.0] * 6 + [0.5], ("meteor", "spice"))],
)
def test_the_length_tells_what_was_measured(extra: list[float], more: tuple[str, ...]) -> None:
    found = metrics.aggregate([[1.5, *[1.0] * 10, 0.25, *extra]] * 3)
    assert list(found) == ["cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", *more]
    assert (found["cider"], found["rouge_l"]) == (150, 25)
    assert found.get("spice", 50) == 50
    assert found.get("meteor", 40) == pytest.approx(40)  # P = R = 1, one chunk a word


SCORER = """
sys.stderr.write('Picked up JAVA_TOOL_OPTIONS: x\\n')
for line in sys.stdin:
    sys.stderr.write('w' * 5000 + '\\n')
    print(*[2.0] * 2, *[0.0] * 2, *[2.0] * 2, *[0.0] * 14, 1.0, 2.0, 2.0, flush=True)
"""


def test_many_captions_do_not_block(fake_java: Any) -> None:
    """The program writes more than the pipes hold before all is read."""
    fake_java(SCORER)
    numbers = java.meteor_statistics([["a dog " * 30]] * 3000, ["a cat " * 30] * 3000)
    assert numbers == [[1.5, 1.5, 1.5, 1.5, 0, 2]] * 3000
    assert java.meteor(numbers[0]) == 1


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "sys.exit('Picked up A\\nError: Could not reserve enough space.')",
            r"failed \(exit status 1\): Error: Could not",
        ),
        ("print('1.0 2.0')", "no answer|gave an answer that is none: 2 numbers"),
        ("print('Error: bad')", "gave an answer that is none"),
        ("", "answered 0 of 2 lines"),
        (SCORER + "print('x')", "gave an answer that is none"),
        (SCORER.replace("sys.stdin", "[1]"), "answered 1 of 2 lines"),
        ("os.fork() or time.sleep(60); time.sleep(60)", "was ended after 1 s"),
    ],
)
def test_a_program_that_fails_is_a_reason(
    fake_java: Any, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    fake_java(program)
    monkeypatch.setattr(java, "METEOR_SECONDS", (1.0, 0.0) if "sleep" in program else (60.0, 0.0))
    before = time.monotonic()
    numbers, reasons = metrics.measure([["A dog."], ["A cat."]], ["A dog.", "A cow."])
    assert time.monotonic() - before < 40
    assert {len(row) for row in numbers} == {12}
    with pytest.raises(java.Unavailable, match=reason):
        java.meteor_statistics([["a dog"], ["a cat"]], ["a dog", "a cow"])
    assert reasons["meteor"].startswith("METEOR's ")
    assert reasons["meteor"].endswith(".")
    assert "\n" not in reasons["meteor"]


@pytest.fixture
def corenlp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of pycocoevalcap in which SPICE has all it needs."""
    folder = tmp_path / "pycocoevalcap/spice"
    (folder / "lib").mkdir(parents=True)
    for name in ("spice-1.0.jar", *(f"lib/{jar}" for jar in java.CORENLP)):
        (folder / name).touch()
    monkeypatch.setattr(java, "_folder", lambda name: tmp_path / "pycocoevalcap" / name)
    return folder


SPICE = """
at = sys.argv.index('spice-1.0.jar')
given, _, cache, _, answer, *rest = sys.argv[at + 1:]
assert rest == ['-subset', '-silent'] and '-Xmx8G' in sys.argv
assert os.getcwd().endswith('spice') and Path('lib').is_dir()
Path(cache, 'data.mdb').touch()
rows = json.loads(Path(given).read_text())
score = lambda row: {'All': {'f': VALUE, 'pr': 1.0, 're': 1.0}, 'Color': {'f': None}}
Path(answer).write_text(json.dumps([{'image_id': row['image_id'], 'scores': score(row)} for row in reversed(rows)]))
"""


def test_spice_reads_the_programs_answer(fake_java: Any, corenlp: Path) -> None:
    """No more than the calling convention is tested: the program has never run here."""
    fake_java(SPICE.replace("VALUE", "len(row['test'].split()) / (10 * len(row['refs']))"))
    before = set(corenlp.rglob("*"))
    assert java.spice([["a dog", "dogs"], ["a cat"]], ["a é dog", "two"]) == [0.15, 0.1]
    assert set(corenlp.rglob("*")) == before
    numbers, reasons = metrics.measure([["A dog.", "Dogs."], ["A cat."]], ["A big dog.", "Two."])
    assert [row[12:] for row in numbers] == [[0.15], [0.1]]
    assert list(reasons) == ["meteor"]
    assert metrics.aggregate(numbers)["spice"] == pytest.approx(12.5)
    assert "spice" not in metrics.unmeasured()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("sys.exit('Exception in thread main: no memory')", "failed .* no memory"),
        ("", "gave an answer that is none"),
        (SPICE.replace("VALUE", "None"), "gave an answer that is none"),
        (SPICE.replace("VALUE", "float('nan')"), "gave no number for 2 images"),
        (SPICE.replace("VALUE", "1").replace("reversed(rows)", "rows[1:]"), "gave an answer that is none"),
    ],
)
@pytest.mark.usefixtures("corenlp")
def test_spice_that_fails_is_a_reason(fake_java: Any, program: str, reason: str) -> None:
    fake_java(program)
    with pytest.raises(java.Unavailable, match=reason):
        java.spice([["a dog"], ["a cat"]], ["a dog", "a cow"])


def test_without_corenlp_spice_says_what_goes_where(fake_java: Any, corenlp: Path) -> None:
    fake_java("")
    (corenlp / "lib" / java.CORENLP[1]).unlink()
    reason = metrics.unmeasured()["spice"]
    assert all(word in reason for word in (*java.CORENLP, str(corenlp / "lib"), "stanford-corenlp-full-2015-12-09.zip"))
    with pytest.raises(java.Unavailable, match="SPICE needs stanford"):
        java.spice([["a dog"]], ["a dog"])
    (corenlp / "spice-1.0.jar").unlink()
    assert "install that again" in metrics.unmeasured()["spice"]
