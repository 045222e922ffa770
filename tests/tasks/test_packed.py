"""Tables with images inside: what comes out of hand-made ones in both layouts, and every fault told in a sentence."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.asked import make
from tests.tasks.tables import cell, picture, prepared, question, write_parquet, write_tsv
from vlbench.errors import UserError

packed: Any = importlib.import_module("vlbench.tasks._packed")


def test_a_photograph_is_one_file_however_many_rows_show_it(tmp_path: Path) -> None:
    rows = [question(1), question(2, image="1"), question(3, image=cell(1)), question(4, image=cell(2))]
    write_tsv(tmp_path / "AI2D_TEST.tsv", rows)
    task = make("ai2d", tmp_path)
    assert "vlbench data prepare task=ai2d" in task.missing("test")[0]
    task.prepare("test", lambda line: None)
    samples = task.samples("test")
    assert [s.images for s in samples[:3]] == [samples[0].images] * 3
    assert samples[0].images[0].read_bytes() == picture(1)
    assert len(list((tmp_path / "unpacked" / "images").iterdir())) == 2
    first = samples[0]
    assert (first.id, first.text, first.target, first.candidates) == (
        "1", "Question 1?\nA. red\nB. blue", {"A": 1.0}, ("A", "B"),
    )  # fmt: skip
    assert first.cluster == samples[1].cluster != samples[3].cluster
    again = make("ai2d", tmp_path)
    (tmp_path / "AI2D_TEST.tsv").unlink()  # what was unpacked is enough
    assert again.missing("test") == []
    assert again.samples("test") == samples


def test_another_table_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    write_tsv(tmp_path / "AI2D_TEST.tsv", [question(1)])
    task = prepared("ai2d", tmp_path, "test")
    write_tsv(tmp_path / "AI2D_TEST.tsv", [question(1, answer="B")])
    assert "another table" in task.missing("test")[0]
    assert prepared("ai2d", tmp_path, "test").samples("test")[0].target == {"B": 1.0}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([question(1, image="1")], "row 1: its image is that of row 1, which is itself"),
        ([question(1, image="9")], "that of row 9, which is not there"),
        ([question(1), question(2, image="1"), question(3, image="2")], "row 2, which has no image of its own"),
        ([question(1, image="!" * 100)], "row 1: its image is no base64"),
        ([question(1, image="QUJD" * 30)], "its image is none of"),
        ([question(1, image="[__import__('os').getcwd()]")], "is no list of plain values"),
        ([question(1, image="")], "row 1 has no image"),
        ([question(1, A="", B="")], "options none"),
        ([question(1, A="")], "options B"),
        ([question(1, answer="C")], "the answer 'C', and the options A, B"),
        ([question(1), question(1)], "has 1 twice"),
        ([{"image": cell(1), "question": "q", "A": "a", "B": "b"}], "a row without index"),
    ],
)
def test_faults_are_told(rows: list[dict[str, Any]], sentence: str, tmp_path: Path) -> None:
    write_tsv(tmp_path / "AI2D_TEST.tsv", rows)
    with pytest.raises(UserError, match=re.escape(sentence)):
        prepared("ai2d", tmp_path, "test").samples("test")
    assert not (tmp_path / "executed").exists()
    if not list(tmp_path.rglob("*.json")):  # refused while it was unpacked, and not when it was asked
        assert [path.name for path in tmp_path.iterdir()] == ["AI2D_TEST.tsv"]


def test_a_table_that_is_refused_takes_no_image_of_another(tmp_path: Path) -> None:
    write_tsv(tmp_path / "AI2D_TEST.tsv", [question(1)])
    prepared("ai2d", tmp_path, "test")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "AI2D_TEST.tsv").unlink()
    write_tsv(tmp_path / "AI2D_TEST.tsv", [question(1), question(2, image=cell(7)), question(3, image="9")])
    with pytest.raises(UserError, match="row 9, which is not there"):
        prepared("ai2d", tmp_path, "test")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "AI2D_TEST.tsv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no table of questions"):
        prepared("ai2d", tmp_path, "test")
    (tmp_path / "AI2D_TEST.tsv").write_text("index\tquestion\tA\n1\tq\n")
    with pytest.raises(UserError, match="not as many cells"):
        prepared("ai2d", tmp_path, "test")


def test_labels_in_another_case_and_as_numbers(tmp_path: Path) -> None:
    write_tsv(tmp_path / "AI2D_TEST.tsv", [question(1, answer="b"), question(2, answer=" 1 "), question(3, answer="")])
    samples = prepared("ai2d", tmp_path, "test").samples("test")
    assert [s.target for s in samples] == [{"B": 1.0}, {"B": 1.0}, None]


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    image = {"bytes": picture(1), "path": "a.png"}
    rows = [{"question": "Q?", "options": ["red", "blue"], "answer": "1", "image": image, "question_id": n}
            for n in range(70)]  # fmt: skip
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows)
    samples = prepared("ai2d", tmp_path, "test").samples("test")
    assert len(samples) == 70
    assert len({s.images for s in samples}) == 1
    assert (samples[3].text, samples[3].target) == ("Q?\nA. red\nB. blue", {"B": 1.0})
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        prepared("ai2d", tmp_path, "test")


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'vlbench\[parquet\]'"):
        prepared("ai2d", tmp_path, "test")


def test_quoted_cells_and_plain_lines_are_read_as_csv_reads_them(tmp_path: Path) -> None:
    """Oracle: csv.DictReader on the whole file. Marks, tabs and line breaks inside cells, marks inside words, an empty
    line, line ends of another system."""
    rows = [
        'index\tquestion\tA\tB\tanswer\timage', f'1\tplain\tx\ty\tA\t{cell(1)}',
        f'2\t"two\nlines and a\ttab"\tx\t"a ""word"""\tB\t{cell(2)}', '', f'3\ta 5" pipe\tx\ty\tA\t{cell(3)}',
        f'4\t"quoted"\tx\ty\tB\t{cell(1)}',
    ]  # fmt: skip
    for end in ("\n", "\r\n"):
        path = tmp_path / "table.tsv"
        path.write_bytes(end.join(rows).encode())
        with path.open(encoding="utf-8", newline="") as file:
            wanted = [dict(row) for row in csv.DictReader(file, delimiter="\t")]
        assert list(packed._tsv_rows(path)) == wanted
        assert len(wanted) == 4


def test_an_image_that_rows_repeat_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [question(i, image=cell(i % 3)) for i in range(12)]
    write_tsv(tmp_path / "MMStar.tsv", rows)
    decoded: list[str] = []
    plain = packed._decoded
    monkeypatch.setattr(packed, "_decoded", lambda text, place: (decoded.append(place), plain(text, place))[1])
    task = prepared("mmstar", tmp_path, "val")
    assert len(decoded) == 3
    assert len({sample.images for sample in task.samples("val")}) == 3
