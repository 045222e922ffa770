"""Every rule for written answers against its reference evaluator's recorded verdicts (shared/oracles/families, where
the evaluators and their commits are named): strings exact, sums to 1e-12."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.beside import SHARED

FILES = SHARED / "oracles" / "families"

yes_no: Any = importlib.import_module("vlbench.tasks._yes_no")
choice: Any = importlib.import_module("vlbench.tasks._choice")
short: Any = importlib.import_module("vlbench.tasks._short")
mmmu: Any = importlib.import_module("vlbench.tasks._mmmu_rules")
vqa: Any = importlib.import_module("vlbench.tasks._vqa_accuracy")


def recorded(name: str) -> Any:
    return json.loads((FILES / f"{name}_a.json").read_text())


def said(rows: list[dict[str, Any]], rule: Callable[[str], str]) -> list[str]:
    return [rule(row["prediction"]) for row in rows]


def test_pope() -> None:
    told = recorded("pope")
    rows = told["rows"]
    assert said(rows, yes_no.pope_official) == told["official"]["parsed"]
    strict = [float(word == row["label"]) for word, row in zip(said(rows, yes_no.exact), rows, strict=True)]
    assert strict == told["lmms_eval"]["score"]
    names = {"": "Unknown", "yes": "Yes", "no": "No"}
    assert [names[word] for word in said(rows, yes_no.one_word)] == told["vlmevalkit"]["extracted"]


def test_mme() -> None:
    told = recorded("mme")
    rows = told["rows"]
    for rule, name in ((yes_no.mme_official, "official"), (yes_no.mme_lmms, "lmms_eval")):
        assert [word or "other" for word in said(rows, rule)] == told[name]["parsed"], name
    names = {"": "Unknown", "yes": "Yes", "no": "No"}
    assert [names[word] for word in said(rows, yes_no.one_word)] == told["vlmevalkit"]["extracted"]


def test_scienceqa() -> None:
    told = recorded("scienceqa")
    for number, row in enumerate(told["predictions"]):
        problem = told["problems"][row["question_id"]]
        options, truth = choice.lettered(problem["choices"]), choice.LETTERS[problem["answer"]]
        ours = choice.scienceqa_llava(row["text"], options)
        assert (ours == truth) == bool(told["llava"]["correct"][number]), row
        parsed = told["llava"]["parsed"][number]
        assert ours == (parsed if parsed in options else ""), row
        lmms = choice.scienceqa_lmms(row["text"], options)
        assert (lmms == truth) == bool(told["lmms_eval"]["correct"][number]), row


def test_mmbench() -> None:
    for row in recorded("mmbench")["strings"]:
        text, options = row["prediction"], choice.lettered(row["options"])
        assert (choice.vlmevalkit(text, options) or "Z") == row["vlmevalkit_extract"], row
        assert choice.vlmevalkit(text, options) == row["vlmevalkit_can_infer"], row
        assert choice.lmms_letter(text, list(options)) == row["lmms_mcq_extract"], row
        own = choice._lmms_letter_word(text) or choice._only_text(text, options)
        assert own == row["lmms_can_infer"], row


def test_mmmu() -> None:
    told = recorded("mmmu")
    for row in told["multiple_choice"]:
        text, options = row["response"], choice.lettered(row["options"])
        assert (mmmu.official(text, options) or "RANDOM") == row["official"], row
        assert (mmmu.lmms(text, options) or "RANDOM") == row["lmms_eval"], row
        assert choice.lmms_letter(text, list(options)) == row["lmms_mcq_extract"], row
    for row in told["open"]:
        values = sorted(f"{type(v).__name__}:{v}" for v in mmmu.open_values(row["response"]))
        assert values == row["official_parsed"], row
        assert mmmu.open_right(row["response"], row["answer"]) == row["official_correct"], row
    for row in told["real_responses"]:
        if row["question_type"] == "multiple-choice":
            assert (mmmu.official(row["response"], row["index2ans"]) or "RANDOM") == row["official"], row
            assert (mmmu.lmms(row["response"], row["index2ans"]) or "RANDOM") == row["lmms_eval"], row
        else:
            answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            assert mmmu.open_right(row["response"], answers) == row["official_correct"], row


def test_textvqa() -> None:
    told = recorded("textvqa")
    for row in told["normaliser"]:
        assert vqa.normalise_tokens(row["input"]) == row["official"] == row["lmms_eval"], row
        assert vqa.normalise_repaired(row["input"]) == row["vlmevalkit"], row
    for rule, name in ((vqa.normalise_tokens, "official"), (vqa.normalise_repaired, "vlmevalkit")):
        assert said(told["rows"], rule) == told[name]["normalised"]
        ours = [vqa.soft_accuracy(row["prediction"], row["answers"], rule) for row in told["rows"]]
        assert ours == pytest.approx(told[name]["per_question"], abs=1e-12)
        if name == "official":
            assert sum(ours) / len(ours) == pytest.approx(told[name]["accuracy"], abs=1e-12)


def test_chartqa() -> None:
    told = recorded("chartqa")
    for rule, name in ((short.relaxed, "lmms_eval"), (short.relaxed_vlmevalkit, "vlmevalkit")):
        assert [float(rule(row["prediction"], row["target"])) for row in told["rows"]] == told[name]["correct"], name


def test_docvqa() -> None:
    told = recorded("docvqa")
    ours = [short.anls(row["prediction"], row["answers"]) for row in told["rows"]]
    assert ours == pytest.approx(told["lmms_eval"]["anls"], abs=1e-12)
    assert ours == pytest.approx(told["vlmevalkit"]["anls"], abs=1e-12)
    for row, wanted in zip(told["rows"], told["stvqa_mmf"]["anls"], strict=True):
        own = short.anls_mmf(row["prediction"], row["answers"])
        assert own == (1.0 if wanted is None else pytest.approx(wanted, abs=1e-12)), row


def test_small() -> None:
    told = recorded("small")
    four = dict.fromkeys("ABCD", "")
    for row in told["seedbench"]:
        assert (choice.first_character(row["prediction"], four) == row["answer"]) == bool(row["correct"]), row
    for row in told["ai2d"]:
        assert choice.letter_and_period(row["prediction"]) == row["filtered"], row
        assert (choice.ai2d_lmms(row["prediction"], four) == row["answer"]) == bool(row["correct"]), row
    for row in told["mmstar"]:
        assert (choice.lmms_letter(row["prediction"], list("ABCD")) == row["answer"]) == bool(row["correct"]), row
    for row in told["ocrbench"]:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        formula = row["dataset"] == "HME100k"
        assert short.contained(row["prediction"], answers, formula=formula, folded=True) == bool(row["correct"]), row
    for row in told["realworldqa"]:
        assert choice.realworldqa(row["prediction"], row["answer"]) == bool(row["correct"]), row
