"""What is submitted is made again from what the run left. Every tampering is caught, with its file named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.leaderboard.factory import record
from vlbench.cell import cell as cells
from vlbench.cell.again import open_again
from vlbench.compression import saved
from vlbench.disk.storage import digest, read_json, write_json
from vlbench.errors import UserError
from vlbench.leaderboard.rows import agree
from vlbench.machine.ui import Screen
from vlbench.plugins.workspace import boards_folder
from vlbench.publishing import predicted
from vlbench.publishing.regenerate import boards
from vlbench.publishing.submission import LARGEST, submit, submit_all, submit_each
from vlbench.records.record import pack_scores, read_record, write_record
from vlbench.records.statistics import interval, versus
from vlbench.run.runner import Runner


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with the dense cell of suite mini's ImageNet, and two rows beside it (seconds)."""
    runs = tmp_path_factory.mktemp("finished")
    with Screen(quiet=True) as screen:
        for sparsity in ("0.5", "0.3"):
            Runner(runs, screen).run({"task": "imagenet", "method": "magnitude", "sparsity": sparsity})
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def of(runs: Path, name: str) -> Path:
    return next(runs.glob(f"mini-imagenet-deit-mini-{name}-*"))


def edited(file: Path, change: Callable[[Any], Any]) -> None:
    data = read_json(file)
    write_json(file, change(data) or data)


def test_a_finished_run_becomes_a_result(runs, tmp_path):
    run = of(runs, "magnitude-0.5")
    places = {
        "hostname": "node7",
        "python": "/home/ann/venv/bin/python",
        "command": "vlbench run data=/data/ann/coco",
        "repository": "https://example.org/vlbench",
        "files": ["weights.pt", "~/w.pt", "file:///w.pt"],
        "gpu": {"name": "H200", "user": "ann"},
    }
    edited(run / "result.json", lambda data: {**data, "provenance": places})
    path = submit(run, tmp_path / "results")
    found = read_record(path)
    assert path == tmp_path / "results" / "mini" / f"{run.name}.json"
    assert found.provenance == {
        "repository": "https://example.org/vlbench",
        "files": ["weights.pt"],
        "gpu": {"name": "H200"},
    }
    assert agree(found, read_record(run / "result.json"))
    assert submit(run, tmp_path / "results") == path
    assert path.stat().st_size < LARGEST


def without_sources(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity as it is once the checkout's changes are committed: until then they are part of it."""
    return {
        **identity,
        "family": None,
        "task": identity["task"][:2],
        "chain": [[n, o] for n, _, o in identity["chain"]],
    }


def test_a_row_measured_again_says_what_is_committed(runs):
    """The committed result was made by another version, on another machine and day."""
    ours = read_record(of(runs, "magnitude-0.5") / "result.json")
    theirs = read_record(boards_folder() / "results" / "mini" / f"{ours.cell}.json")
    assert without_sources(ours.identity) == without_sources(theirs.identity)
    assert agree(ours, theirs)


def test_a_result_of_schema_1_gets_what_that_lacked(runs, tmp_path):
    run = of(runs, "magnitude-0.5")
    wanted = read_record(run / "result.json").model_digest
    edited(
        run / "result.json",
        lambda data: {**{k: v for k, v in data.items() if k != "model_digest"}, "schema_version": 1},
    )
    assert read_record(submit(run, tmp_path)).model_digest == wanted != ""


def swap_weights(runs: Path, digest_too: bool = False) -> None:
    """The model of another run in the place of this one's, whole and intact."""
    mine, other = of(runs, "magnitude-0.5"), of(runs, "magnitude-0.3")
    shutil.rmtree(mine / "model")
    shutil.copytree(other / "model", mine / "model")
    if digest_too:
        told = saved.manifest_digest(mine / "model")
        edited(mine / "result.json", lambda data: {**data, "model_digest": told})


def one_bit(runs: Path) -> None:
    file = of(runs, "magnitude-0.5") / "model" / saved.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def in_result(**changes: Any) -> Callable[[Path], None]:
    return lambda runs: edited(of(runs, "magnitude-0.5") / "result.json", lambda data: {**data, **changes})


def within(part: str, **changes: Any) -> Callable[[Path], None]:
    return lambda runs: edited(
        of(runs, "magnitude-0.5") / "result.json", lambda data: {**data, part: {**data[part], **changes}}
    )


def in_predictions(change: Callable[[list[str]], list[str]], run: str = "magnitude-0.5") -> Callable[[Path], None]:
    def apply(runs: Path) -> None:
        file = of(runs, run) / "predictions.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return apply


def other_answer(lines: list[str]) -> list[str]:
    """A wrong prediction of the third sample, whose score is left as it was."""
    line = json.loads(next(line for line in lines if json.loads(line)["score"][0] == 1))
    number = next(i for i, text in enumerate(lines) if json.loads(text)["id"] == line["id"])
    wrong = next(json.loads(text) for text in lines if json.loads(text)["score"] == [0.0, 0.0])
    lines[number] = json.dumps({**line, "prediction": wrong["prediction"]}) + "\n"
    return lines


def better_score(lines: list[str]) -> list[str]:
    number, line = next((i, json.loads(t)) for i, t in enumerate(lines) if json.loads(t)["score"] == [0.0, 0.0])
    lines[number] = json.dumps({**line, "score": [1.0, 1.0]}) + "\n"
    return lines


def failed(lines: list[str]) -> list[str]:
    return [lines[0], json.dumps({**json.loads(lines[1]), "status": "error"}) + "\n", *lines[2:]]


def other_version(runs: Path) -> None:
    """As an older vlbench would have written it, names, digests and all."""
    run = of(runs, "magnitude-0.5")
    told = read_record(run / "result.json")
    identity = {**told.identity, "numerics": 0}
    cell = told.cell.rpartition("-")[0] + "-" + digest(identity)[:12]
    for name in ("result.json", "cell.json"):
        edited(run / name, lambda data: {**data, "cell": cell, "identity": identity})


def other_method(runs: Path) -> None:
    run = of(runs, "magnitude-0.5")
    told = read_record(run / "result.json").model_dump(mode="json")
    (link,), (inside,) = told["chain"], told["identity"]["chain"]
    identity = {**told["identity"], "chain": [[inside[0], "0", inside[2]]]}
    cell = told["cell"].rpartition("-")[0] + "-" + digest(identity)[:12]
    edited(run / "cell.json", lambda data: {**data, "cell": cell, "identity": identity})
    change = {"cell": cell, "identity": identity, "chain": [{**link, "version": "0"}]}
    edited(run / "result.json", lambda data: {**data, **change})


CAMPAIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a metric": (within("metrics", top1=99.0), "result.json is inconsistent .metrics: top1 is 73"),
    "another metric": (within("metrics", top5=99.0), "result.json is inconsistent .metrics: top5"),
    "a metric more": (within("metrics", top9=99.0), "result.json is inconsistent .metrics: top9 is None"),
    "the value shown": (within("interval", value=99.0), "result.json is inconsistent .interval: value"),
    "an interval": (within("interval", low=72.9), "result.json is inconsistent .interval: low"),
    "a difference": (within("vs_dense", delta=-1.0), "result.json is inconsistent .vs_dense: delta"),
    "no difference": (in_result(vs_dense=None), "result.json is inconsistent .its vs_dense should be"),
    "the scores": (
        in_result(scores=pack_scores([1.0] * 2000)),
        "result.json is inconsistent .its scores",
    ),
    "the samples": (in_result(samples=1999), "result.json is inconsistent .counts: samples"),
    "the sparsity": (within("parameters", removed=10**6), "result.json is inconsistent .its parameters"),
    "the MACs": (in_result(macs=10**6), "result.json is inconsistent .its macs"),
    "the budget": (within("budget", steps=7), "result.json is inconsistent .its budget"),
    "the pattern": (in_result(pattern="structured"), "result.json is inconsistent .its pattern"),
    "the name": (in_result(method="wanda"), "result.json is no result of this installation .its cell's name"),
    "the target": (in_result(sparsity_target="0.9"), "result.json is no result of this installation .its cell's name"),
    "the folder": (in_result(cell="../../evil"), r"result.json is damaged \(cell: "),
    "an option": (
        in_result(chain=[{"name": "magnitude", "version": "1", "options": {"sparsity": 0.9, "group": "matrix"}}]),
        "result.json is no result of this installation .it says one thing of its chain",
    ),
    "an identity": (within("identity", seed=3), "result.json is no result of this installation .its cell's name"),
    "a prediction": (in_predictions(other_answer), r"predictions.jsonl, line \d+ is inconsistent .its score"),
    "a score": (in_predictions(better_score), r"predictions.jsonl, line \d+ is inconsistent .its score"),
    "a line less": (in_predictions(lambda lines: [*lines[:3], *lines[4:]]), "predictions.jsonl is damaged .1999 lines"),
    "a line twice": (in_predictions(lambda lines: [*lines, lines[0]]), "predictions.jsonl is damaged .2001 lines"),
    "other order": (in_predictions(lambda lines: lines[::-1]), "predictions.jsonl is damaged .2000 lines"),
    "a torn line": (
        in_predictions(lambda lines: [*lines[:-1], lines[-1][:9]]),
        "predictions.jsonl is damaged .its last",
    ),
    "an error": (in_predictions(failed), "predictions.jsonl, line 2: .* is error"),
    "no class": (
        in_predictions(lambda lines: [*lines[:-1], lines[-1].replace('"prediction"', '"prediction":{},"p"')]),
        "predictions.jsonl has predictions that task=imagenet cannot score",
    ),
    "a dense prediction": (
        in_predictions(lambda lines: [lines[1], lines[0], *lines[2:]], "dense"),
        "imagenet-deit-mini-dense.*predictions.jsonl is damaged",
    ),
    "swapped weights": (swap_weights, "model is inconsistent .it is not the model that was evaluated"),
    "swapped weights, digest too": (lambda r: swap_weights(r, True), "result.json is inconsistent .its parameters are"),
    "a flipped bit": (one_bit, "model.safetensors is damaged"),
    "another version": (other_version, "result.json is no result .*version of vlbench, or of its numerics"),
    "another method": (other_method, "result.json is no result .*version of vlbench, or of its chain"),
    "a newer schema": (in_result(schema_version=9), "result.json is of schema 9"),
    "a limit": (in_result(flags=["limit"]), "cannot be submitted: only some of its samples"),
    "incomplete": (in_result(complete=False), "cannot be submitted: some of its samples failed"),
    "a label": (in_result(label="mine"), "cannot be submitted: its weights are the submitter's own"),
    "too large": (in_result(phases={"x" * LARGEST: 1.0}), "is too large to commit"),
    "no predictions": (
        lambda runs: (of(runs, "magnitude-0.5") / "predictions.jsonl").unlink(),
        "predictions.jsonl is missing",
    ),
    "no dense run": (
        lambda runs: shutil.rmtree(of(runs, "dense")),
        "dense-.*predictions.jsonl is missing: the dense run",
    ),
    "no result": (lambda runs: (of(runs, "magnitude-0.5") / "result.json").unlink(), "is not finished"),
    "no model": (lambda runs: shutil.rmtree(of(runs, "magnitude-0.5") / "model"), "holds no compressed model"),
    "foreign cell.json": (
        lambda runs: shutil.copy(of(runs, "dense") / "cell.json", of(runs, "magnitude-0.5") / "cell.json"),
        "result.json is no result .*cell.json is of another cell",
    ),
}


def borrowed(runs: Path, every: int = 1) -> None:
    """Predictions of the dense run, of every so many samples, in the pruned one's file, and all that follows from them
    in its record: only the saved model says otherwise."""
    run, dense = of(runs, "magnitude-0.5"), of(runs, "dense")
    mine, theirs = ((one / "predictions.jsonl").read_text().splitlines() for one in (run, dense))
    lines = [
        their if number % every == 0 else our for number, (our, their) in enumerate(zip(mine, theirs, strict=True))
    ]
    (run / "predictions.jsonl").write_text("".join(line + "\n" for line in lines))
    scores, before = ([json.loads(line)["score"] for line in some] for some in (lines, theirs))
    values = 100 * np.array(scores)
    clusters = [""] * len(scores)
    record = read_record(run / "result.json")
    forged = {
        "scores": pack_scores(scores),
        "metrics": {"top1": float(values[:, 0].mean()), "top5": float(values[:, 1].mean())},
        "interval": interval(values[:, 0], clusters),
        "vs_dense": versus(values[:, 0], 100 * np.array(before)[:, 0], clusters),
    }
    write_record(run / "result.json", record.model_copy(update=forged))


CAMPAIGN |= {
    "borrowed predictions": (borrowed, "predictions.jsonl is inconsistent .the saved model answers"),
    "some borrowed predictions": (
        lambda runs: borrowed(runs, every=3),
        "predictions.jsonl is inconsistent .the saved model answers",
    ),
    "a flag more": (in_result(flags=["own checkpoint"]), "result.json is inconsistent .its flags are own checkpoint"),
    "another recipe": (in_result(recipe="paper"), "result.json is inconsistent .its recipe is paper"),
    "other words": (
        lambda runs: edited(
            of(runs, "magnitude-0.5") / "cell.json",
            lambda data: {**data, "given": {**data["given"], "sparsity": "0.4"}},
        ),
        "result.json is no result .*its words give",
    ),
}


@pytest.mark.parametrize("what", CAMPAIGN)
def test_tampering_is_caught_and_its_file_named(runs, tmp_path, what):
    tamper, why = CAMPAIGN[what]
    run = of(runs, "magnitude-0.5")
    tamper(runs)
    with pytest.raises(UserError, match=why):
        submit(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_flag_that_was_taken_out_is_put_back(runs, tmp_path, monkeypatch):
    """The card says that the weights were trained on what is evaluated; the run was made before it did."""
    from vlbench.publishing import claims

    plain = claims.card_of
    monkeypatch.setattr(claims, "card_of", lambda cell: replace(plain(cell), trained_on=("imagenet/val",)))
    with pytest.raises(UserError, match="its flags are none, and should be contaminated"):
        submit(of(runs, "magnitude-0.5"), tmp_path / "results")


def test_samples_are_chosen_by_the_files_and_enough(runs):
    run = of(runs, "magnitude-0.5")
    cell = open_again(run, read_record(run / "result.json"))
    chosen = [predicted.asked(cell, challenge) for challenge in ("a", "a", "b")]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(set(some)) == predicted.COUNT >= 32 for some in chosen)


def test_a_run_of_an_older_vlbench_which_kept_no_words_is_submitted(runs, tmp_path):
    run = of(runs, "magnitude-0.5")
    edited(run / "cell.json", lambda data: {k: v for k, v in data.items() if k != "given"})
    assert submit(run, tmp_path / "results").is_file()


def test_a_newer_vlbench_refuses_what_an_older_one_measured(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "NUMERICS_VERSION", 2)
    with pytest.raises(UserError, match="another version of vlbench, or of its numerics"):
        submit(of(runs, "magnitude-0.5"), tmp_path)


def test_a_result_is_not_overwritten_by_another(runs, tmp_path):
    path = submit(of(runs, "magnitude-0.5"), tmp_path)
    edited(path, lambda data: {**data, "metrics": {**data["metrics"], "top1": 1.0}})
    before = path.read_bytes()
    with pytest.raises(UserError, match="says something else about this cell"):
        submit(of(runs, "magnitude-0.5"), tmp_path)
    assert path.read_bytes() == before


def test_all_finished_runs_are_handed_in_and_the_others_told(runs, tmp_path):
    edited(of(runs, "magnitude-0.3") / "result.json", lambda data: {**data, "flags": ["limit"]})
    (runs / "unfinished").mkdir()
    told = list(submit_all(runs, tmp_path / "up"))
    assert [fine for _, fine in told] == [True, True, True]
    assert [line.split()[0] for line, _ in told] == ["wrote", "left", "wrote"]
    assert len(list((tmp_path / "up" / "mini").glob("*.json"))) == 2
    assert Path("mini/imagenet.csv") in boards(tmp_path / "up"), "it is laid out like leaderboards/results"
    within("metrics", top1=99.0)(runs)
    assert [fine for _, fine in submit_all(runs, tmp_path / "again")] == [True, True, False]
    with pytest.raises(UserError, match="no finished runs"):
        list(submit_all(tmp_path / "nothing", tmp_path / "up"))


def test_a_run_that_is_refused_keeps_no_other_out(runs, tmp_path):
    named = [runs / "nothing", of(runs, "magnitude-0.5")]
    told = list(submit_each(named, tmp_path / "up"))
    assert [fine for _, fine in told] == [False, True]
    assert "is not finished" in told[0][0]
    assert [p.stem for p in (tmp_path / "up" / "mini").glob("*.json")] == [named[1].name]


@pytest.mark.parametrize("identity", [{"numerics_version": 1}, {}, {"task": 3, "chain": [[1]]}])
def test_made_up_results_are_foreign(tmp_path, identity):
    run, made_up = tmp_path / "run", record("wanda", sparsity=0.5, identity=identity)
    parts = ("mini", "vqav2", "blip-mini", "wanda", "0.5")
    name = cells.cell_id(parts, made_up.seed, identity)
    write_record(run / "result.json", made_up.model_copy(update={"cell": name}))
    write_json(run / "cell.json", {"cell": name, "identity": identity})
    with pytest.raises(UserError, match="no result of this installation"):
        submit(run, tmp_path / "results")
