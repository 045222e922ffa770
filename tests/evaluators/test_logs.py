"""Logs of other harnesses, compared: the oracle is McNemar's test and the counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlbench.comparison.paired import mcnemar
from vlbench.errors import UserError
from vlbench.evaluators.compared import compare_logs, print_logs
from vlbench.evaluators.logs import read_log

DENSE, PRUNED = (1, 1, 1, 0, 1, 1, 0, 1), (1, 0, 1, 1, 0, 0, 0, 1)


def line(number: int, score: Any, **more: Any) -> dict[str, Any]:
    """As lmms-eval logs a sample."""
    doc = {"image": f"{number // 2}.jpg"}
    fixed = {"doc": doc, "target": "yes", "resps": [["Yes"]], "filtered_resps": ["Yes"], "doc_hash": f"h{number}"}
    return {"doc_id": number, **fixed, "token_counts": [None], "exact_match": score, **more}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


def test_samples_are_paired_by_their_names(written: Callable[..., Path]) -> None:
    """In another order; true and false are scores, and so is an object's."""
    a = written("a.jsonl", [line(i, float(s)) for i, s in enumerate(DENSE)])
    b = written("b.jsonl", [line(i, bool(s)) for i, s in reversed(list(enumerate(PRUNED)))])
    c = written("c.jsonl", [line(i, {"score": s, "question_id": "q"}) for i, s in enumerate(DENSE)])
    first, value, (pruned, same) = compare_logs([a, b, c])
    assert (first.metric, value, pruned.value) == ("exact_match", 75.0, 50.0)
    assert (pruned.delta, pruned.test) == (-25.0, "McNemar")
    assert (pruned.kept, pruned.lost, pruned.gained) == (3, 3, 1)
    wanted = mcnemar(first.scores > 0, read_log(b).scores[::-1] > 0)
    assert pruned.p == pytest.approx(min(1.0, 2 * wanted))  # Holm over two
    assert (same.delta, same.lost, same.gained) == (0.0, 0, 0)


def test_clusters_are_a_field_of_the_documents(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a = written("a.jsonl", [line(i, s) for i, s in enumerate(DENSE)])
    b = written("b.jsonl", [line(i, s) for i, s in enumerate(PRUNED)])
    first, _, (row,) = compare_logs([a, b], cluster="image")
    assert len(set(first.clusters)) == 4
    assert row.test == "t, clusters"
    print_logs([a, b], "", "image", as_json=False)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"exact_match of 8 samples in 4 clusters; differences to {a}"
    assert told[2].endswith("(t, clusters); kept 3, lost 3, gained 1")
    print_logs([a, b], "", "", as_json=True)
    assert json.loads(capsys.readouterr().out)["others"][0]["lost"] == 3
    with pytest.raises(UserError, match="no field 'picture'"):
        compare_logs([a, b], cluster="picture")


def test_tables_of_vlmevalkit(tmp_path: Path) -> None:
    for name, scores in (("a.csv", DENSE), ("b.tsv", PRUNED)):
        between = "," if name.endswith("csv") else "\t"
        rows = [between.join(("index", "prediction", "hit"))]
        rows += [between.join((str(100 + i), "A", str(s))) for i, s in enumerate(scores)]
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    first, value, (row,) = compare_logs([tmp_path / "a.csv", tmp_path / "b.tsv"])
    assert (first.metric, value, row.value) == ("hit", 75.0, 50.0)


def test_scores_beyond_one_keep_their_scale(written: Callable[..., Path]) -> None:
    a = written("a.jsonl", [line(i, 10.0 * s) for i, s in enumerate(DENSE)])
    b = written("b.jsonl", [line(i, 10.0 * s) for i, s in enumerate(PRUNED)])
    _, value, (row,) = compare_logs([a, b])
    assert (value, row.delta, row.kept) == (7.5, -2.5, None)


def test_what_is_no_log_is_told(written: Callable[..., Path], tmp_path: Path) -> None:
    good = [line(i, s) for i, s in enumerate(DENSE)]
    none = [{**good[0], "exact_match": None}, *good[1:]]
    a = written("a.jsonl", good)
    wrong = {
        "takes two logs or more": [a],
        "does not exist": [a, tmp_path / "none.jsonl"],
        "have no doc_id": [a, written("b.jsonl", [*good[:-1], {"x": 1}])],
        "has sample 0 twice": [a, written("c.jsonl", [*good, good[0]])],
        "are not of the same samples: 1 lack in the one and 0 in the other": [a, written("d.jsonl", good[1:])],
        "has other documents than": [a, written("e.jsonl", [*good[1:], {**good[0], "doc_hash": "x"}])],
        "sample 0 has no finite exact_match": [a, written("f.jsonl", none[::-1])],
        "has the scores exact_match, anls: name one": [a, written("g.jsonl", [{**row, "anls": 0.5} for row in good])],
        "is no file of JSON lines": [a, written("h.txt", []).rename(tmp_path / "h.jsonl"), tmp_path / "i.jsonl"],
        "should be lmms-eval's .jsonl": [a, written("j.txt", good)],
    }  # fmt: skip
    (tmp_path / "h.jsonl").write_text("{")
    (tmp_path / "i.jsonl").write_text("")
    for sentence, files in wrong.items():
        with pytest.raises(UserError, match=sentence):
            compare_logs(files)
    with pytest.raises(UserError, match="has no score 'anls'; it has exact_match"):
        compare_logs([a, a], metric="anls")
    with pytest.raises(UserError, match="holds no sample"):
        read_log(tmp_path / "i.jsonl")
