"""predictions.jsonl: what a kill, a full disk or a flipped bit leaves of it, and what is made of that."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vlbench.errors import UserError
from vlbench.evaluation.predictions import Predictions, read_predictions
from vlbench.task import Sample

SAMPLES = [Sample(f"q{i}", ()) for i in range(6)]


def line(i: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"q{i}", "prediction": {"answer": "a\u2028b\n"}, "score": [0.5, i], "status": "ok", **changes}


def begun(folder: Path, *numbers: int) -> Predictions:
    found = Predictions(folder / "predictions.jsonl")
    for i in numbers:
        found.add([line(i)])
    return found


def test_it_ends_in_the_splits_order(tmp_path: Path) -> None:
    book = begun(tmp_path, 3, 0, 5, 1, 4, 2)
    lines = book.finish(book.gather(SAMPLES))
    assert [found["id"] for found in lines] == [s.id for s in SAMPLES]
    assert read_predictions(book.file, [s.id for s in SAMPLES]) == lines
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.jsonl", "sums.json"]


def test_torn_anywhere_the_whole_lines_before_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # it would take seconds
    part = begun(tmp_path, 0, 1, 2).part
    data = part.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for size in range(len(data) + 1):
        part.write_bytes(data[:size])
        again = Predictions(tmp_path / "predictions.jsonl")
        assert list(again.lines) == [f"q{i}" for i in range(sum(end <= size for end in ends))]
        again.add([line(5)])  # behind a torn line it would be torn too
        assert list(Predictions(tmp_path / "predictions.jsonl").lines) == list(again.lines)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"[1]", b"3", b'{"id": 3}', b'{"id": "q1"}', b"{" * 9999, b""])
def test_what_follows_a_damaged_line_is_predicted_again(tmp_path: Path, damage: bytes) -> None:
    part = begun(tmp_path, 0, 1, 2).part
    rows = part.read_bytes().split(b"\n")
    part.write_bytes(b"\n".join([rows[0], damage, *rows[1:]]))
    assert list(Predictions(tmp_path / "predictions.jsonl").lines) == ["q0"]


def test_a_batch_written_twice_counts_once(tmp_path: Path) -> None:
    book = begun(tmp_path, 0, 1, 2)
    book.add([line(1, score=[1.0, 1])])
    assert Predictions(book.file).lines["q1"]["score"] == [1.0, 1]
    assert len(Predictions(book.file).lines) == 3


def test_a_sample_that_failed_is_tried_again(tmp_path: Path) -> None:
    book = begun(tmp_path, 0)
    book.add([line(1, status="error", score=None)])
    assert list(Predictions(book.file).lines) == ["q0"]


def test_killed_before_the_record_the_finished_file_is_taken_over(tmp_path: Path) -> None:
    begin = begun(tmp_path, 0, 1, 2, 3, 4, 5)
    lines = begin.finish(begin.gather(SAMPLES))
    before = (tmp_path / "predictions.jsonl").read_bytes()
    again = Predictions(tmp_path / "predictions.jsonl")
    assert again.finish(again.gather(SAMPLES)) == lines
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_lines_are_what_a_resumed_run_would_read(tmp_path: Path) -> None:
    book = begun(tmp_path)
    book.add([line(0, score=(1.0, 0.0))])
    assert book.lines["q0"]["score"] == [1.0, 0.0]
    assert Predictions(book.file).lines == book.lines


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = begun(tmp_path, 0, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*predictions\.part: No space left on device"):
            book.add([line(2)])
    assert "q2" not in book.lines
    with book.part.open("a") as stream:
        stream.write('{"id":"q')
    assert list(Predictions(book.file).lines)[:2] == ["q0", "q1"]


def test_the_batch_size_that_fits_is_remembered(tmp_path: Path) -> None:
    book = begun(tmp_path, 0)
    assert book.fits is None
    book.limit(64)
    book.limit(32)
    assert Predictions(book.file).fits == 32


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda rows: [*rows[:2], "{}", *rows[3:]], "line 3, is damaged .it lacks id, prediction, score, status"),
        (lambda rows: [*rows[:2], "[]", *rows[3:]], "line 3, is damaged .it is a list"),
        (lambda rows: [*rows[:2], rows[2][:-3], *rows[3:]], "line 3, is damaged"),
        (lambda rows: [rows[0].replace('"q0"', "0"), *rows[1:]], "line 1, is damaged .it lacks a text as id"),
        (lambda rows: rows[:-3] + rows[-1:], "is damaged .4 lines, which are not the split's 6 samples"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "is damaged .6 lines, which are not the split's"),
        (lambda rows: rows[:-1], "its last line is torn"),
    ],
)
def test_a_damaged_finished_file_is_told(tmp_path: Path, damage: Any, told: str) -> None:
    begin = begun(tmp_path, *range(6))
    begin.finish(begin.gather(SAMPLES))
    file = tmp_path / "predictions.jsonl"
    file.write_text("\n".join(damage(file.read_text().split("\n"))))
    with pytest.raises(UserError, match=rf"predictions\.jsonl.*{told}.*delete the run's folder"):
        read_predictions(file, [s.id for s in SAMPLES])


def test_a_missing_or_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predictions\.jsonl is damaged"):
        read_predictions(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl is damaged"):
        read_predictions(tmp_path / "predictions.jsonl")


def test_a_line_is_one_line(tmp_path: Path) -> None:
    book = begun(tmp_path, 0)
    assert json.loads(book.part.read_text())["prediction"] == {"answer": "a\u2028b\n"}
