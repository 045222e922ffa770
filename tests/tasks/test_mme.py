"""MME: sums against the evaluation tool's recorded ones (1e-10) on its folder layout, and files that are not right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tasks.asked import draw, make, recorded, recorded_here, totals
from vlbench.errors import UserError


def write(root: Path, subtask: str, name: str, lines: list[str], *, nested: bool = False) -> None:
    texts, pictures = ("questions_answers_YN", "images") if nested else ("", "")
    draw(root / subtask / pictures / f"{name}.jpg")
    (root / subtask / texts).mkdir(parents=True, exist_ok=True)
    (root / subtask / texts / f"{name}.txt").write_text("\n".join(lines) + "\n")


@recorded_here
@pytest.mark.parametrize("rule", ["official", "lmms", "vlmevalkit"])
def test_sums_equal_the_evaluators(rule: str, tmp_path: Path) -> None:
    told = recorded("mme")
    pairs: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(told["rows"]):
        pairs.setdefault((row["category"], row["image"]), []).append(number)
    said: dict[str, str] = {}
    for k, ((subtask, _), numbers) in enumerate(pairs.items()):
        lines = [f"{told['rows'][n]['question']}\t{told['rows'][n]['answer']}" for n in numbers]
        write(tmp_path, subtask, f"{k:04}", lines, nested=subtask in ("posters", "scene"))
        said.update({f"{subtask}/{k:04}/{i}": told["rows"][n]["prediction"] for i, n in enumerate(numbers)})
    task = make("mme", tmp_path, rule=rule)
    assert task.missing("test") == []
    samples = task.samples("test")
    found = totals(task, samples, [said[s.id] for s in samples])
    theirs = {"official": told["official"], "lmms": told["lmms_eval"], "vlmevalkit": told["vlmevalkit"]["scores"]}[rule]
    assert found["perception"] == pytest.approx(theirs["perception"], abs=1e-9)
    cognition = theirs["reasoning" if rule == "vlmevalkit" else "cognition"]
    assert found["cognition"] == pytest.approx(cognition, abs=1e-9)
    if rule == "official":
        mine = {name: found[f"score/{name}"] for name in theirs["per_task"]}
        assert mine == pytest.approx(theirs["per_task"], abs=1e-9)
    scores = task.scores(samples, [{"answer": said[s.id]} for s in samples])
    assert task.corpus_metric(np.array(scores).sum(0, keepdims=True))[0] == pytest.approx(found["perception"], abs=1e-9)
    assert samples[0].text == "Question 0?"
    assert samples[0].cluster == samples[1].cluster != samples[2].cluster


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [(["a?\tYes"], "should have two questions, and has 1"), (["a?\tYes", "b? No"], "line 2, should be a question"),
     (["a?\tYes", "b?\tMaybe"], "line 2, should be a question")],
)  # fmt: skip
def test_wrong_texts_are_named(lines: list[str], sentence: str, tmp_path: Path) -> None:
    write(tmp_path, "count", "1", lines)
    with pytest.raises(UserError, match=sentence):
        make("mme", tmp_path).samples("test")
    assert len(make("mme", tmp_path).missing("test")) == 13
    (tmp_path / "count" / "1.jpg").unlink()
    with pytest.raises(UserError, match="no picture for 1"):
        make("mme", tmp_path).samples("test")
