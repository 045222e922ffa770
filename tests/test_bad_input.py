"""Bad input: one clear sentence, exit code 2, nothing written (the issue's list)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.lab import Lab, method_file
from vlbench.disk import storage

# Words -------------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once(lab: Lab) -> None:
    told = lab.refused("run", "task=vqa", "method=upopp", "model=blipp", "sparsty=2", "suite=ful").split("\n")
    assert len(told) == 5
    for name in ("vqav2", "upop", "blip-vqa", "sparsity"):
        assert any(f"Did you mean {name!r}?" in line for line in told), name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("method=uniform sparsity=2:4", "uniform does not make it"),
        ("method=uniform sparsity=1.2", "should be above 0 and below 1"),
        ("method=finetune", "has nothing to restore"),
        ("method=upop steps=3", "write upop_search.steps= or finetune.steps="),
        ("method=upop upop_search.steps=-1", "should be greater than or equal to 0"),
        ("split=train", "split=train is none of task=imagenet"),
        ("group=row", "group= is not known here"),
    ],
)
def test_words_that_make_no_sense(lab: Lab, words: str, sentence: str) -> None:
    assert sentence in lab.refused_run(*words.split())


def test_options_that_contradict_one_another_are_one_sentence(lab: Lab) -> None:
    """Oracle: the task's own sentence, with nothing before it."""
    told = lab.refused("run", "task=ade20k", "window=32", "stride=64")
    assert told == "stride=64 leaves gaps between windows of 32: lower it."


def test_a_model_without_the_capability(lab: Lab) -> None:
    told = lab.refused("run", "task=vqav2", "model=deit-mini")
    start = "model=deit-mini cannot answer, which task=vqav2 needs. Models that can: blip-vqa, blip-vqa-mini, "
    assert told.startswith(start)
    assert "deit-mini" not in told.removeprefix(start)


@pytest.mark.parametrize("flag", ["--plan", "--json"])
def test_flags_change_nothing_about_it(lab: Lab, flag: str) -> None:
    assert "Did you mean 'magnitude'?" in lab.refused_run("method=magnitud", flag)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("list method", "Did you mean 'methods'?"),
        ("help method=upo", "Did you mean 'upop'?"),
        ("help methd=upop", "vlbench help takes method=NAME"),
        ("help upopp", "Did you mean 'upop'?"),
        ("check task=imagenet", "vlbench check takes method=NAME"),
        ("check method=upo", "Did you mean 'upop'?"),
        ("new task mine", "only `vlbench new method NAME` is there"),
        ("new method Mine-1", "should be a lower-case Python identifier"),
        ("new method class", "should be a lower-case Python identifier"),
        ("new method task", "should be a lower-case Python identifier"),
        ("new method upop", "there is a method 'upop' already"),
        ("submit nothing", "leaderboards does not exist"),
        ("leaderboard", "no run in runs enters a board"),
        ("cost model=", "model= is empty: give a value, or leave it out for all"),
        ("score nothing file=x.json", "there is no run 'nothing' in runs"),
        ("score nothing fle=x.json", "vlbench score takes RUN and file=PATH"),
    ],
)
def test_other_verbs(lab: Lab, arguments: str, sentence: str) -> None:
    assert sentence in lab.refused(*arguments.split())


@pytest.mark.parametrize("arguments", ["", "rn", "run", "run --plann task=imagenet", "list a b"])
def test_wrong_use_of_the_command_line_exits_with_2(lab: Lab, arguments: str) -> None:
    before = lab.listing()
    told = lab(*arguments.split())
    assert told.code == 2
    assert lab.listing() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runs", ""], "the word after --runs is empty"),
        (["--runs="], "--runs has no value"),
        ([""], "is empty"),
    ],
)
def test_an_empty_word_is_no_folder(lab: Lab, words: list[str], sentence: str) -> None:
    """As a path it would be the working folder, and cells would lie among the user's files."""
    assert sentence in lab.refused("run", *lab.words, "method=magnitude", *words)


# Data --------------------------------------------------------------------------------------------------------------


def test_data_without_a_place(lab: Lab) -> None:
    """What goes where, and what to do."""
    (lab.folder / "vlbench.toml").write_text("")
    told = lab.refused_run()
    assert told.startswith("where is the imagenet data?\n<imagenet>/val should hold the images")
    assert f"{lab.folder / 'vlbench.toml'} with the lines\n[roots]\nimagenet = " in told
    assert "run the same command again" in told


def test_missing_data_name_the_folder(lab: Lab) -> None:
    shutil.rmtree(lab.data / "val")
    told = lab.refused_run("method=magnitude")
    assert told.startswith(f"imagenet lacks data in {lab.data}:\n{lab.data / 'val'} should hold the images")


def test_missing_training_data_are_told_before_the_dense_model_runs(lab: Lab) -> None:
    shutil.rmtree(lab.data / "train")
    assert str(lab.data / "train") in lab.refused_run("method=upop")


def test_ids_of_the_report_split_in_training(lab: Lab) -> None:
    file = next((lab.data / "val" / "n90000000").iterdir())
    shutil.copy(file, lab.data / "train" / "n90000000" / file.name)
    assert "are in the data a method would learn from" in lab.refused_run("method=dense+finetune")


def test_a_task_without_mini_data(lab: Lab) -> None:
    source = '''
from vlbench.task import Task, task
@task("mine", title="Mine", capability="classify", metric="top1", version=1)
class Mine(Task):
    """Mine."""
    metrics = {"top1": "higher"}
    @classmethod
    def roles(cls): return {"train": "train", "select": "train", "report": "val"}
    def missing(self, split): return []
    def samples(self, split): return []
    def score(self, sample, prediction): return 0.0
    def aggregate(self, samples, scores): return {}
'''
    lab.plug("tasks/mine.py", source)
    told = lab.refused("run", "task=mine", "model=deit-mini", f"checkpoint={lab.weights}")
    assert told == "suite=mini has no data for task=mine: write suite=full."


# Weights -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_there(lab: Lab) -> None:
    assert "checkpoint nowhere.safetensors does not exist" in lab.refused_run("checkpoint=nowhere.safetensors")


@pytest.mark.parametrize("method", ["dense", "magnitude"])
def test_a_truncated_checkpoint(lab: Lab, method: str) -> None:
    file = lab.weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    told = lab.refused_run(f"method={method}")
    assert told.startswith(f"{file} cannot be read as weights")
    assert "truncated" in told


def test_a_checkpoint_that_is_no_weights_file(lab: Lab) -> None:
    file = lab.folder / "mine.safetensors"
    file.write_text("<html>not found</html>")
    assert str(file) in lab.refused_run(f"checkpoint={file}")


class Trap:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch trapped",)


def test_nothing_is_unpickled(lab: Lab) -> None:
    file = lab.folder / "trap.pth"
    torch.save({"model": {"x": Trap()}}, file)
    told = lab.run("model=vit-tiny", f"checkpoint={file}")
    assert told.code == 2
    assert str(file) in told.err
    assert not (lab.folder / "trapped").exists()


# Plug-ins ----------------------------------------------------------------------------------------------------------


def test_a_plugin_that_raises_is_named_and_the_others_work(lab: Lab) -> None:
    file = lab.plug("methods/mine.py", method_file("mine", before="1 / 0\n"))
    told = lab.refused_run("method=mine")
    assert (
        told
        == f"{file} cannot be used, it raises on import (ZeroDivisionError: division by zero): mend or move the file."
    )
    assert lab.run("method=magnitude", "--plan").code == 0
    listed = lab("list", "methods")
    assert listed.code == 0
    assert "mine" in listed.out
    checked = lab("list", "--check")
    assert checked.code == 1
    assert str(file) in checked.err


def test_a_plugin_that_cannot_be_parsed_is_named_and_the_others_work(lab: Lab) -> None:
    file = lab.plug("methods/mine.py", "def f(:\n")
    assert str(file) in lab.refused_run("method=mine")
    listed = lab("list", "methods")
    assert f"! {file} cannot be read: SyntaxError" in listed.out
    assert "magnitude" in listed.out
    assert lab.run("method=magnitude", "--plan").code == 0


def test_two_plugins_of_one_name_are_both_named(lab: Lab) -> None:
    one, two = (lab.plug(f"methods/{name}.py", method_file("twin")) for name in ("one", "two"))
    told = lab.refused_run("method=twin")
    assert str(one) in told
    assert str(two) in told


# Where results go --------------------------------------------------------------------------------------------------


def test_a_runs_folder_that_cannot_be_written(lab: Lab) -> None:
    (lab.folder / "runs").write_text("a file, not a folder")
    assert "cannot write in runs" in lab.refused_run("method=magnitude")
    assert "Choose another folder with --runs" in lab.refused_run("method=magnitude")


def test_a_full_disk(lab: Lab) -> None:
    """A limit on the size of files takes the place of the end of the disk: the system refuses in the same way."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        "sys.argv = ['vlbench', *sys.argv[1:]]; from vlbench.cli import main; main()"
    )
    command = [sys.executable, "-B", "-c", code, "run", *lab.words, "method=magnitude"]
    done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot write in runs/" in done.stderr


def test_any_error_of_the_disk_is_one_sentence(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(storage.os, "fsync", full)
    told = lab.run("method=magnitude")
    assert told.code == 2
    assert "No space left on device" in told.err
    assert "Traceback" not in told.err


# Damaged results ---------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(lab: Lab) -> Path:
    """The folder of a finished cell."""
    told = lab.run("--json")
    assert told.code == 0, told
    return lab.folder / "runs" / json.loads(told.out)["cell"]


@pytest.mark.parametrize("damage", ["cut", "text", "key", "schema", "list"])
def test_a_damaged_result_is_named(lab: Lab, finished: Path, damage: str) -> None:
    file = finished / "result.json"
    whole = json.loads(file.read_text())
    texts = {
        "cut": file.read_text()[:200],
        "text": "nonsense",
        "key": json.dumps({k: v for k, v in whole.items() if k != "interval"}),
        "schema": json.dumps({**whole, "schema_version": 99}),
        "list": "[]",
    }
    file.write_text(texts[damage])
    told = lab.refused_run()
    assert "result.json" in told
    assert "delete" in told


def test_a_damaged_checkpoint_is_named(lab: Lab, finished: Path) -> None:
    """Of a training that was interrupted: the identity of its cell is right, its bytes are not."""
    words = ("method=dense+finetune", "steps=2", "finetune.batch_size=4", "warmup=0")
    plan = json.loads(lab.run(*words, "--plan", "--json").out)
    state = lab.folder / "runs" / plan["cell"] / "checkpoint" / "finetune"
    state.mkdir(parents=True)
    (state / "meta.json").write_text("{}")
    (state / "state.safetensors").write_bytes(b"xx")
    told = lab.run(*words)
    assert told.code == 2
    assert "damaged" in told.err
    assert "finetune" in told.err
    assert "Traceback" not in told.err
