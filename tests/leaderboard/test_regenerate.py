"""Boards are the same bytes everywhere, and only a consistent, finished run becomes a result."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlbench.errors import UserError
from vlbench.leaderboard.regenerate import LARGEST, boards, check, submit, write
from vlbench.record import Record, pack_scores, read_record, unpack_scores, write_record

from .factory import board, record

DIGEST = """
import hashlib, sys
from pathlib import Path
from vlbench.leaderboard.regenerate import boards
texts = sorted((str(name), text) for name, text in boards(Path(sys.argv[1])).items())
print(hashlib.sha256(repr(texts).encode()).hexdigest())
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    records = [*board(), *(r.model_copy(update={"cell": f"x{r.cell}", "task": "nlvr2"}) for r in board()[:3])]
    for r in records:
        write_record(tmp_path / "leaderboards" / "results" / r.suite / f"{r.cell}.json", r)
    return tmp_path / "leaderboards" / "results"


def a_run(folder: Path, mine: Record | None = None, **changes) -> Path:
    """A finished run's folder. changes: fields of the record that its predictions do not know."""
    mine = mine or record("wanda", sparsity=0.5, pattern="2:4", accuracy=0.7)
    lines = [
        {"id": str(i), "prediction": {"answer": "yes"}, "score": float(score), "status": "ok"}
        for i, score in enumerate(unpack_scores(mine.scores)[:, 0])
    ]
    save_predictions(folder, lines)
    write_record(folder / "result.json", mine.model_copy(update=changes))
    return folder


def save_predictions(folder: Path, lines: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


# --- boards -----------------------------------------------------------------------------------------


def test_one_board_for_each_suite_and_task(results):
    names = {name.as_posix() for name in boards(results)}
    assert names == {"mini/nlvr2.csv", "mini/nlvr2.md", "mini/vqav2.csv", "mini/vqav2.md"}
    assert boards(results / "nothing") == {}


def test_written_boards_are_found_identical(results):
    assert len(write(results, results.parent)) == 4
    assert check(results, results.parent) == []
    assert write(results, results.parent) == []


def test_check_shows_a_changed_number(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    path.write_text(path.read_text().replace("accuracy,", "accuracy,9", 1))
    lines = check(results, results.parent)
    assert lines[0] == "--- mini/vqav2.csv (found)"
    assert any(line.startswith("-mini,vqav2,val,1,blip-mini") for line in lines)
    assert write(results, results.parent) == [Path("mini/vqav2.csv")]


def test_check_shows_other_line_ends(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert any(line.endswith("\\r") for line in check(results, results.parent))


def test_missing_and_stray_boards_are_reported_and_mended(results):
    out = results.parent
    write(results, out)
    (out / "mini" / "vqav2.csv").rename(out / "mini" / "old.csv")
    (out / "mini" / "vqav2.md").rename(out / "mini" / "old.md")
    (out / "mini" / "README.md").write_text("Written by hand.\n")
    (out / "published").mkdir()
    (out / "published" / "upop.csv").write_text("model,value\n")
    assert check(results, out) == [
        "mini/vqav2.csv is missing",
        "mini/vqav2.md is missing",
        "mini/old.csv has no results",
        "mini/old.md has no results",
    ]
    write(results, out)
    assert check(results, out) == []
    assert (out / "mini" / "README.md").exists()
    assert (out / "published" / "upop.csv").exists()


def test_a_result_cannot_write_outside_the_boards(results):
    write_record(results / "mini" / "evil.json", record(task="../../evil", cell="evil"))
    with pytest.raises(UserError, match="cannot be part of a file name"):
        boards(results)


def test_bytes_do_not_depend_on_the_process(results, tmp_path):
    again = tmp_path / "again"
    for i, path in enumerate(sorted(results.rglob("*.json"), reverse=True)):
        write_record(again / f"{i:02d}.json", read_record(path))
    texts = sorted((str(name), text) for name, text in boards(results).items())
    wanted = hashlib.sha256(repr(texts).encode()).hexdigest()
    settings = [
        ("0", "C", "UTC"),
        ("1", "C.UTF-8", "Asia/Tokyo"),
        ("2", "de_DE.UTF-8", "UTC"),
        ("3", "POSIX", "UTC"),
    ]
    for (seed, locale, zone), folder in zip(settings, (results, again) * 2, strict=True):
        env = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        command = [sys.executable, "-c", DIGEST, str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted


# --- submit -----------------------------------------------------------------------------------------


def test_a_finished_run_becomes_a_result(tmp_path):
    provenance = {
        "torch": "2.8.0",
        "hostname": "node7",
        "python": "/home/ann/venv/bin/python",
        "command": "vlbench run data=/data/ann/coco",
        "repository": "https://example.org/vlbench",
        "files": ["weights.pt", "~/w.pt", "file:///w.pt"],
        "gpu": {"name": "H200", "user": "ann"},
    }
    path = submit(a_run(tmp_path / "run", provenance=provenance), tmp_path / "results")
    found = read_record(path)
    assert path == tmp_path / "results" / "mini" / f"{found.cell}.json"
    assert found.provenance == {
        "torch": "2.8.0",
        "repository": "https://example.org/vlbench",
        "files": ["weights.pt"],
        "gpu": {"name": "H200"},
    }
    assert submit(tmp_path / "run", tmp_path / "results") == path
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"complete": False}, "some of its samples failed"),
        ({"flags": ["limit"]}, "only some of its samples"),
        ({"label": "mine"}, "submitter's own"),
        ({"samples": 1499}, "1500 predictions, 1499 samples"),
        ({"scores": record("wanda", accuracy=0.71).scores}, "not the record's"),
        ({"metrics": {"accuracy": 99.0}}, "accuracy is 77"),
        ({"metrics": {"top1": 99.0}}, "lack the primary one"),
        ({"interval": record("wanda", accuracy=0.71).interval}, "interval is 77"),
        ({"cell": "../../evil"}, "cannot be part of a file name"),
        ({"identity": {"long": "x" * LARGEST}}, "too large to commit"),
    ],
)
def test_a_run_that_must_not_be_submitted(tmp_path, changes, why):
    with pytest.raises(UserError, match=why):
        submit(a_run(tmp_path / "run", **changes), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_unfinished_run_is_refused(tmp_path):
    (a_run(tmp_path / "run") / "result.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        submit(tmp_path / "run", tmp_path / "results")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": "error"}, "line 3: 2: error"),
        ({"id": "0"}, "line 3: a second prediction for 0"),
        ({"score": "1.0"}, "line 3: 2: ok"),
        ({"score": None}, "line 3: 2: ok"),
        ({"score": float("nan")}, "line 3: 2: ok"),
        ({"score": 0.123456}, "not the record's"),
    ],
)
def test_predictions_must_bear_the_result_out(tmp_path, change, why):
    lines = predictions(a_run(tmp_path / "run"))
    lines[2] |= change
    save_predictions(tmp_path / "run", lines)
    with pytest.raises(UserError, match=why):
        submit(tmp_path / "run", tmp_path / "results")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ('{"id": "0", "sco', "is damaged .its last line is torn"),
        ('{"id": "0"}\n', "line 1, is damaged"),
        (None, "is missing"),
    ],
)
def test_damaged_predictions_are_named(tmp_path, text, why):
    path = a_run(tmp_path / "run") / "predictions.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=f"predictions.jsonl.* {why}|predictions.jsonl, {why}"):
        submit(tmp_path / "run", tmp_path / "results")


def test_a_result_is_not_overwritten_by_another(tmp_path):
    path = submit(a_run(tmp_path / "run"), tmp_path / "results")
    before = path.read_bytes()
    other = record("wanda", sparsity=0.5, pattern="2:4", accuracy=0.6, cell=path.stem)
    with pytest.raises(UserError, match="says something else about this cell"):
        submit(a_run(tmp_path / "run", other), tmp_path / "results")
    assert path.read_bytes() == before


def test_a_corpus_metric_is_recomputed_by_the_tasks_aggregate(tmp_path):
    lines = [{"id": str(i), "prediction": {}, "score": [i % 3, 3], "status": "ok"} for i in range(9)]
    value = 100 * sum(line["score"][0] for line in lines) / 27
    interval = record().interval.model_copy(update={"value": value})
    mine = record("wanda", sparsity=0.5, metric="mIoU", metrics={"mIoU": value}, samples=9).model_copy(
        update={"interval": interval, "scores": pack_scores([line["score"] for line in lines])}
    )
    write_record(tmp_path / "run" / "result.json", mine)
    save_predictions(tmp_path / "run", lines)

    def aggregate(scores):
        return {"mIoU": 100 * sum(s[0] for s in scores) / sum(s[1] for s in scores)}

    assert submit(tmp_path / "run", tmp_path / "results", aggregate) == submit(tmp_path / "run", tmp_path / "results")
    with pytest.raises(UserError, match="mIoU is 50"):
        submit(tmp_path / "run", tmp_path / "results", lambda scores: {"mIoU": 50.0})


def test_a_submitted_run_enters_the_board(results, tmp_path):
    before = boards(results)
    submit(a_run(tmp_path / "run", record("wanda", sparsity=0.625, pattern="2:4", accuracy=0.7)), results)
    after = boards(results)
    assert len(after[Path("mini/vqav2.csv")].splitlines()) == len(before[Path("mini/vqav2.csv")].splitlines()) + 1
