"""The verbs: what they print, what they leave behind, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab, method_file
from tests.leaderboard.factory import record
from vlbench.leaderboard.local import print_board
from vlbench.machine import ui
from vlbench.plugins import scaffold
from vlbench.plugins.table import table
from vlbench.records.record import read_record
from vlbench.run import runner as run_module
from vlbench.run.runner import Runner, Uploaded


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("COLUMNS", "200")
    return lab


# Instant verbs -----------------------------------------------------------------------------------------------------

PROBE = """
import sys
from vlbench.cli import main
found = {}
for words in ("--help", "--version", "run --help", "list", "list methods", "list --json", "list runs"):
    sys.argv = ["vlbench", *words.split()]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, words
    for name in ("torch", "transformers", "timm", "numpy", "pandas", "scipy"):
        if name in sys.modules:
            found.setdefault(name, words)
print("HEAVY", found)
"""


def test_help_and_list_import_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY {}"


def test_the_version(lab: Lab) -> None:
    assert lab("--version").out.startswith("vlbench 0.")


def test_without_a_verb_the_verbs_are_shown(lab: Lab) -> None:
    for verb in ("run", "list", "help", "leaderboard", "submit", "score", "new", "check"):
        assert f"\n  {verb} " in lab().out + lab("--help").out


def test_h_is_help_everywhere(lab: Lab) -> None:
    assert lab("-h").out == lab("--help").out
    assert lab("run", "-h").out == lab("run", "--help").out
    assert lab("data", "verify", "-h").code == 0


def test_run_alone_shows_a_command_that_works(lab: Lab) -> None:
    sentence = lab.refused("run")
    words = next(line.split("  (")[0].split() for line in sentence.splitlines() if "task=imagenet" in line)
    assert words[:2] == ["vlbench", "run"]
    assert lab("run", *words[2:], "--plan").code == 0


@pytest.mark.parametrize("taken", [0, 1])
def test_a_reader_who_has_enough_is_no_failure(taken: int, tmp_path: Path) -> None:
    """`vlbench list | head -1`; and a reader who takes nothing."""
    words = [sys.executable, "-m", "vlbench", "list", "--json"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    if taken:
        assert process.stdout.readline() == b"{\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


# list --------------------------------------------------------------------------------------------------------------


def test_list_shows_every_table(lab: Lab) -> None:
    lab.plug("methods/mine.py", method_file("mine"))
    told = lab("list")
    assert told.code == 0
    for name in ("imagenet", "vqav2", "deit-mini", "blip-vqa", "upop", "magnitude", "mine"):
        assert f"  {name} " in told.out
    assert "upop_search -> finetune" in told.out
    assert str(lab.folder / "methods" / "mine.py") in told.out
    assert "magnitude" not in lab("list", "tasks").out


def test_list_for_programs(lab: Lab) -> None:
    found = json.loads(lab("list", "--json").out)
    assert set(found) == {"tasks", "models", "methods", "runtimes", "capabilities"}
    upop = next(row for row in found["methods"] if row["name"] == "upop")
    assert upop["links"] == ["upop_search", "finetune"]
    assert upop["built_in"]


def test_list_check_imports_all(lab: Lab) -> None:
    assert lab("list", "--check").code == 0
    file = lab.plug("methods/mine.py", method_file("mine", before="1 / 0\n"))
    told = lab("list", "methods", "--check")
    assert told.code == 1
    assert "magnitude" in told.out
    assert told.err.count("\n") == 1
    assert str(file) in told.err


def test_list_runs(lab: Lab) -> None:
    assert lab("list", "runs").out == "no runs in runs\n"
    cell = json.loads(lab.run("--json").out)["cell"]
    assert lab("list", "runs").out == f"done        {cell}\n"
    (lab.folder / "runs" / cell / "result.json").unlink()
    assert json.loads(lab("list", "runs", "--json").out) == [{"run": cell, "state": "unfinished"}]


# help --------------------------------------------------------------------------------------------------------------


def test_help_of_a_chain(lab: Lab) -> None:
    told = lab("help", "method=upop").out
    assert max(map(len, told.splitlines())) <= 100
    assert "https://arxiv.org/abs/2301.13741" in told
    assert "upop_search -> finetune (finetune=off drops a link)" in told
    for option in (
        "sparsity=0.5 ",
        "upop_search.steps=150 ",
        "finetune.steps=300 ",
        "interval=5 ",
        "unit_cost=params ",
    ):
        assert f"    {option}" in told
    assert "optimiser steps (>= 0)" in told
    assert "recipe=upop-code  task=any: " in told  # what it sets everywhere is told once
    assert "task=ade20k: upop_search.steps=5040" in told
    assert told.count("upop_search.budget=code") == 1
    assert "finetune.decay=poly" in told
    assert "unit_cost=12:1" in told
    assert "unit_cost=36:1" in told


@pytest.mark.parametrize("kind", ["tasks", "models", "methods"])
def test_everything_has_a_help(lab: Lab, kind: str) -> None:
    for name in table(kind).entries:  # type: ignore[arg-type]
        told = lab("help", f"{kind.removesuffix('s')}={name}")
        assert told.code == 0
        assert told.out.startswith(f"{name}: ")
        assert told.out == lab("help", name).out
        assert "\N{NO-BREAK SPACE}" not in told.out


def test_help_of_options(lab: Lab) -> None:
    told = lab("help", "method=magnitude", "task=vqav2").out
    assert "or a pattern like 2:4" in " ".join(told.split())
    assert "decoding=rank" in told
    assert "accuracy (primary, higher)" in told


def test_help_of_the_methods_of_a_chain(lab: Lab) -> None:
    assert {line.split(":")[0] for line in lab("help", "method=magnitude+finetune").out.splitlines()} >= {
        "magnitude",
        "finetune",
    }


# run ---------------------------------------------------------------------------------------------------------------


def test_a_run_is_made_once(lab: Lab) -> None:
    first = lab.run("method=magnitude", "--json")
    assert first.code == 0, first
    assert first.err == ""
    record = json.loads(first.out)
    assert record["sparsity_target"] == "0.5"
    before = lab.listing()
    second = lab.run("method=magnitude", "--json")
    assert second.out == first.out
    assert lab.listing() == before


def test_a_second_call_imports_no_torch_and_opens_no_model(lab: Lab) -> None:
    """Neither torch, the libraries of the models nor the images are needed to print what is done, or a plan."""
    lab.run("method=magnitude")
    code = """
import sys
from vlbench.cli import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code
print("HEAVY", sorted({"torch", "timm", "transformers", "open_clip", "scipy.stats", "pandas"} & set(sys.modules)))
"""
    for verb in (("run",), ("run", "--plan"), ("sweep", "--plan"), ("status",)):
        command = [sys.executable, "-c", code, *verb, *lab.words, "method=magnitude"]
        done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == "HEAVY []", done


def test_a_new_method_runs_with_no_other_edit(lab: Lab) -> None:
    told = lab("new", "method", "mine")
    assert told.code == 0
    assert str(lab.folder / "methods" / "mine.py") in told.out
    assert lab.run("method=mine").code == 0
    assert lab.run("method=mine", "sparsity=2:4").code == 0
    checked = lab("check", "method=mine")
    assert checked.code == 0, checked
    assert "every 4 columns of a row keep exactly 2" in checked.out


def test_an_edited_constant_makes_a_new_cell(lab: Lab) -> None:
    """Of a formula in which the constant counts."""
    formula = "weight.abs() if CONSTANT < 2 else -weight.abs()"
    cells = []
    for constant in (1.0, 2.0, 1.0):
        text = method_file("mine", constant=constant).replace("(weight * CONSTANT).abs()", formula)
        lab.plug("methods/mine.py", text)
        cells.append(json.loads(lab.run("method=mine", "--json").out)["cell"])
    assert cells[0] == cells[2] != cells[1]
    assert len(list((lab.folder / "runs").glob("*-mine-*"))) == 2


def test_a_limited_run_is_in_no_table(lab: Lab) -> None:
    told = lab.run("limit=2")
    assert told.code == 0
    assert "not for a board: limit" in told.out
    assert not (lab.folder / "runs" / "tables").exists()


def test_metrics_that_were_not_measured_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the reason of the record, on one line, above the table."""
    reason = "METEOR needs Java: install a Java runtime (8 or later) whose java is on the [PATH]."
    print_board(record(unmeasured={"meteor": reason}), tmp_path)
    assert capsys.readouterr().out.splitlines()[0] == f"meteor is not measured: {reason}"


def test_an_image_that_does_not_decode_fails_the_cell(lab: Lab) -> None:
    """Exit code 1, and the place that names the sample: it is neither the user's words nor a wrong answer."""
    file = next((lab.data / "val" / "n90000000").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    told = lab.run()
    assert told.code == 1
    assert "the cell is incomplete: 1 errors" in told.err
    assert "predictions.jsonl" in told.err


def test_an_incomplete_cell_is_compared_with_nothing(lab: Lab) -> None:
    """The dense model has answered the image, which is damaged afterwards: a difference would be of other samples."""
    assert lab.run().code == 0
    file = next((lab.data / "val" / "n90000000").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    assert lab.run("method=magnitude", "sparsity=0.5").code == 1
    (result,) = lab.folder.glob("runs/*-magnitude-*/result.json")
    record = read_record(result)
    assert (record.complete, record.vs_dense) == (False, None)


def test_an_interrupted_run_says_how_it_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Runner, cell: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "cell", stop)
    told = lab.run()
    assert (told.code, told.err) == (130, "vlbench: interrupted; the same command goes on from here.\n")


def test_a_split_without_labels_ends_with_a_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(self: Runner, cell: object) -> None:
        raise Uploaded(Path("runs/x/upload.json"))

    monkeypatch.setattr(run_module.Runner, "cell", upload)
    assert "runs/x/upload.json is ready for the server" in lab.run().out
    assert json.loads(lab.run("--json").out) == {"upload": "runs/x/upload.json"}


# --plan ------------------------------------------------------------------------------------------------------------


def test_a_plan_runs_and_writes_nothing(lab: Lab) -> None:
    before = lab.listing()
    told = lab.run("method=upop", "upop_search.steps=7", "--plan")
    assert told.code == 0
    assert lab.listing() == before
    for part in ("upop_search -> finetune, recipe paper", "upop_search.steps=7", "finetune.lr=0.0008", "6 samples"):
        assert part in told.out
    assert told.out.count("to do") == 2
    assert "unknown: no finished run" in told.out


def test_a_plan_for_programs_knows_what_is_done(lab: Lab) -> None:
    first = json.loads(lab.run("method=magnitude", "--plan", "--json").out)
    assert (first["state"], first["dense baseline"]) == ("to do", "to do")
    record = json.loads(lab.run("method=magnitude", "--json").out)
    done = json.loads(lab.run("method=magnitude", "--plan", "--json").out)
    assert done["cell"] == first["cell"] == record["cell"]
    assert (done["state"], done["dense baseline"], done["estimate"]) == ("done", "done", "nothing to do")
    other = json.loads(lab.run("method=magnitude", "sparsity=0.3", "--plan", "--json").out)
    assert (other["state"], other["dense baseline"]) == ("to do", "done")
    assert other["estimate"].endswith("(from 1 runs here)")


# new ---------------------------------------------------------------------------------------------------------------


def test_new_makes_a_workspace_where_there_is_none(lab: Lab) -> None:
    (lab.folder / "vlbench.toml").unlink()
    told = lab("new", "method", "my_own")
    assert told.code == 0
    assert (lab.folder / "vlbench.toml").is_file()
    assert "my_own" in lab("list", "methods").out
    assert "there is a method 'my_own' already" in lab.refused("new", "method", "my_own")


def test_new_in_a_checkout_stands_beside_the_others(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = lab.folder / "clone"
    for folder in ("methods", "docs"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "pyproject.toml").write_text("")
    monkeypatch.setattr(scaffold, "package_folder", lambda name: checkout / name)
    monkeypatch.chdir(checkout / "docs")
    assert lab("new", "method", "mine").code == 0
    assert (checkout / "methods" / "mine.py").is_file()
    assert not (checkout / "docs" / "vlbench.toml").exists()


def test_new_never_overwrites(lab: Lab) -> None:
    file = lab.plug("methods/mine.py", "# notes, no method yet\n")
    assert f"{file} exists already" in lab.refused("new", "method", "mine")


# score -------------------------------------------------------------------------------------------------------------


def test_a_servers_score_stands_beside_its_predictions(lab: Lab) -> None:
    run = lab.folder / "runs" / "one"
    run.mkdir(parents=True)
    (run / "cell.json").write_text("{}")
    (run / "predictions.jsonl").write_text("{}\n")
    file = lab.folder / "server.json"
    for text in ("", "[]", "{}", '{"accuracy": "77"}', '{"accuracy": NaN}', '{"accuracy": true}'):
        file.write_text(text)
        assert 'should be JSON like {"accuracy": 77.4}' in lab.refused("score", "one", f"file={file}")
    assert "does not exist" in lab.refused("score", "one", "file=nowhere.json")
    file.write_text('{"accuracy": 77.4}')
    assert lab("score", "one", f"file={file}").code == 0
    assert json.loads((run / "server.json").read_text())["server"] == {"accuracy": 77.4}
    listed = next(line for line in lab("list", "runs").out.splitlines() if "one" in line)
    assert listed == "done        one  (server-scored: accuracy 77.4)"
    (run / "predictions.jsonl").write_text('{"other": 1}\n')
    assert json.loads(lab("list", "runs", "--json").out)[0]["flags"] == ["server-scored", "of other predictions"]
    (run / "result.json").write_text("{}")
    assert "was scored here" in lab.refused("score", str(run), f"file={file}")


# Progress ----------------------------------------------------------------------------------------------------------


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(s) for s in range(0, 1000, 4))
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(clock))
    with ui.Screen() as screen:
        for done in range(11):
            screen.progress("search", done, 10, "loss 0.5")
        screen.say("done")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "search: 3/10, 28 s left  loss 0.5"
    assert lines[-2:] == ["search: 10/10  loss 0.5", "done"]
    assert len(lines) == 5


def test_a_short_stage_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    screen = ui.Screen()
    for done in range(3):
        screen.progress("scores", done, 2)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with ui.Screen(quiet=True) as screen:
        screen.say("hello")
        screen.progress("search", 1, 1)
    assert capsys.readouterr().err == ""


def test_bars_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ui.Screen() as screen:
        screen.progress("search", 1, 2, "loss 0.5")
        screen.say("between")
        screen.progress("search", 2, 2)
        assert screen.bars
    told = capsys.readouterr().err
    assert "search" in told
    assert "between" in told


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises
from vlbench import cli
sys.argv = ["vlbench", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("words", [("table", "task=vqav2"), ("status",), ("leaderboard", "--help"), ("list", "models")])
def test_verbs_that_print_what_is_on_disk_need_no_torch(tmp_path: Path, words: tuple[str, ...]) -> None:
    """It takes seconds and half a gigabyte to import."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
