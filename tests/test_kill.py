"""kill -9 at random moments, then the same command: the same final files as an undisturbed run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.waiting import until

WNIDS = ["n90000000", "n90000001", "n90000002"]
CONFIG = {
    "architecture": "deit_small_patch16_224",
    "num_classes": len(WNIDS),
    "model_args": {"img_size": 64, "patch_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "label_names": WNIDS,
}
LASTING = ("predictions.jsonl", "model/model.safetensors", "model/vlbench.json", "model/config.json", "cell.json")
CLI_KILLS = 2

# One process that has imported everything and computed nothing forks a child for every life of a run: a start of the
# real command takes seconds, and would be killed in its imports most of the time.
ZYGOTE = """
import importlib, json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import torch.utils.flop_counter
from vlbench.run import Runner
from vlbench.ui import Screen
for name in ("registry.deit", "tasks.imagenet", "methods.upop", "methods.finetune"):
    importlib.import_module("vlbench." + name)
STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.utime", "open"}

class Log(Screen):
    # what a life told, for the parent; at its finetuning it waits until another has found it at work
    def __init__(self, file, other=None): super().__init__(quiet=True); self.file, self.other = file, other
    def say(self, text): self.write("say " + text)
    def progress(self, what, done, total, text=""):
        self.write(f"{what} {done}")
        end = time.monotonic() + 300
        while what == "finetune" and self.other and time.monotonic() < end:
            if Path(self.other).exists() and "another vlbench" in Path(self.other).read_text():
                break
            time.sleep(0.01)
    def write(self, text):
        with open(self.file, "a") as stream: stream.write(text + chr(10))

def kill_at(number, runs):
    # SIGKILL before the number-th step of a life that changes the file system (or opens a file of the run)
    count = 0
    def hook(event, args):
        nonlocal count
        if event in STEPS and args and str(args[0]).startswith(runs):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return lambda: count

class Order:
    def __init__(self, how, cwd, words, seed=7, kills=10, every=1, reach=0.3):
        os.chdir(cwd)
        os.environ["VLBENCH_DATA"] = str(Path(cwd) / "data")
        self.calm, self.killed = str(Path(cwd) / "calm"), str(Path(cwd) / "killed")
        self.words, self.draw, self.kills, self.every = words, random.Random(seed), kills, every
        self.reach = reach
        self.folders, self.stages = [], []
        start = time.monotonic()
        self.life(self.calm)
        self.whole, self.steps = time.monotonic() - start, int(Path(self.calm + ".steps").read_text())
        self.logs = [self.killed + ".log0", self.killed + ".log1"]
        getattr(self, how)()
        self.report = {"folders": self.folders, "stages": self.stages, "logs": self.logs, "steps": self.steps}

    def begin(self, runs, log=os.devnull, other=None, at=0):
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            count = kill_at(at, runs)
            Runner(Path(runs), Log(log, other), checkpoint_seconds=0.0).run(self.words)
            Path(runs + ".steps").write_text(str(count()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def end(self, child):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"exit {status}"
        return status == 0

    def life(self, runs, seconds=None, at=0):
        # whether it ended by itself
        child = self.begin(runs, at=at)
        if seconds is not None:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        ended = self.end(child)
        if not ended:
            self.stages.append(self.stage(runs))
        return ended

    def stage(self, runs):
        # what the pruned cell had written last when it was killed
        cells = [cell for cell in Path(runs).glob("*") if "-dense-" not in cell.name]
        found = [p for cell in cells for p in (*cell.glob("[!.]*"), *cell.glob("checkpoint/[!.]*"))]
        found = [p for p in found if p.name not in ("lease.json", "checkpoint")]
        return max(found, key=lambda p: p.stat().st_mtime).name if found else "start"

    def nothing(self):
        pass

    def times(self):
        # each in a folder of its own, then the same words again
        while len(self.stages) < self.kills:
            folder = f"{self.killed}-{len(self.folders)}"
            self.life(folder, seconds=self.draw.uniform(0.0, self.whole))
            self.folders.append(folder)
            self.life(folder)

    def cascade(self):
        # all in one folder as far as they go, each a little after the last
        self.folders = [self.killed + "-0"]
        while len(self.stages) < self.kills:
            if self.life(self.folders[-1], at=self.draw.randint(1, int(self.reach * self.steps))):
                self.folders.append(f"{self.killed}-{len(self.folders)}")
        self.life(self.folders[-1])

    def every_step(self):
        for number in range(self.kills, self.steps + 2, self.every):
            self.folders.append(f"{self.killed}-{number}")
            if not self.life(self.folders[-1], at=number):
                self.life(self.folders[-1])

    def two(self):
        self.folders = [self.killed]
        pairs = [self.logs, self.logs[::-1]]
        assert all([self.end(child) for child in [self.begin(self.killed, *pair) for pair in pairs]])

for line in sys.stdin:
    print(json.dumps(Order(**json.loads(line)).report), flush=True)
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([sys.executable, "-c", ZYGOTE], env=environment, text=True, stdin=pipe, stdout=pipe) as one:
        yield one
        one.kill()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A workspace: nine training photos and six to evaluate of three classes, and a random DeiT of width 16."""
    from vlbench.model import Card, ImageSpec
    from vlbench.plugins import table

    random.seed(0)
    for split, count in (("train", 8), ("val", 5)):
        for number, wnid in enumerate(WNIDS):
            folder = tmp_path / "data" / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                colour = tuple(40 + 80 * (c == number) + random.randrange(60) for c in range(3))
                Image.new("RGB", (64, 64), colour).save(folder / f"{wnid}_{split}_{i}.png")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps(CONFIG))
    card = Card("deit-mini", "", ("classify",), "", ImageSpec(64))
    torch.manual_seed(0)
    net = table("models").get("deit-mini").load().build(card, CONFIG, tmp_path).net
    save_file(net.state_dict(), tmp_path / "weights" / "model.safetensors")
    return tmp_path


# A stranger's restorer that does all that a resumed run could miss: it draws random numbers, leaves parameters frozen
# for the next link, trains twice under one name, and leaves a gradient behind.
ODD = """
import torch
from vlbench.method import method, Method
from vlbench.training.loop import Schedule

@method("odd", title="Odd", role="restorer", uses_seed=True)
class Odd(Method):
    Options = Schedule

    def apply(self, job):
        net = job.model.net
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("head" in name or "mlp" in name)
        for _ in range(2):
            with torch.no_grad():
                net.head.weight.add_(torch.randn_like(net.head.weight))
            job.train("round", self.options)
            job.loss(job.calibration(2)[0]).backward()
"""


def words(place: Path) -> dict[str, str]:
    return {
        **cell_words(place), "method": "upop", "interval": "2", "upop_search.steps": "6", "finetune.steps": "6",
        "finetune.warmup": "2", "upop_search.batch_size": "6", "finetune.batch_size": "6",
    }  # fmt: skip


def cell_words(place: Path) -> dict[str, str]:
    return {
        "task": "imagenet", "model": "deit-mini", "suite": "full", "checkpoint": str(place / "weights"),
        "evaluation.batch_size": "4",
    }  # fmt: skip


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "VLBENCH_DATA": str(place / "data"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(place: Path, runs: str, *more: str) -> list[str]:
    told = [f"{key}={value}" for key, value in words(place).items()]
    return [sys.executable, "-m", "vlbench.cli", "run", *told, "--runs", runs, "--checkpoint-every", "0", *more]


def final_files(runs: Path) -> dict[str, Any]:
    """Every cell's lasting files; of the record all but times and where it was made."""
    found: dict[str, Any] = {}
    for cell in sorted(file.parent for file in runs.glob("*/cell.json")):
        record = json.loads((cell / "result.json").read_text())
        found[f"{cell.name}/result.json"] = {k: v for k, v in record.items() if k not in ("provenance", "phases")}
        found.update({f"{cell.name}/{n}": (cell / n).read_bytes() for n in LASTING if (cell / n).exists()})
        # Killed after the record was written, a run leaves its lease, which nobody asks for any more.
        left = {p.relative_to(cell).parts[0] for p in cell.rglob("*")} - {"lease.json"}
        found[f"{cell.name} holds"] = sorted(left)
    return found


def ordered(zygote: subprocess.Popen[str], place: Path, how: str, **more: Any) -> dict[str, Any]:
    """What the zygote reports. Every folder it names must hold the files of the undisturbed run."""
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    zygote.stdin.write(json.dumps({"how": how, "cwd": str(place), "words": words(place), **more}) + "\n")
    zygote.stdin.flush()
    told = zygote.stdout.readline()
    assert told, "the zygote failed: its traceback is on stderr"
    report: dict[str, Any] = json.loads(told)
    expected = final_files(place / "calm")
    assert len(expected) == 2 * 4 + 3  # record, cell, predictions and the listing of two cells; files of one model
    for folder in report["folders"]:
        assert final_files(Path(folder)) == expected, folder
    return report


@pytest.mark.slow
def test_kills_at_random_times_leave_no_trace(zygote: subprocess.Popen[str], place: Path) -> None:
    report = ordered(zygote, place, "times")
    assert len(set(report["stages"])) >= 1, report["stages"]


@pytest.mark.slow
def test_kills_between_two_steps_on_disk_leave_no_trace(zygote: subprocess.Popen[str], place: Path) -> None:
    """A kill just before a rename, a removal or an opening: moments that random times hardly ever meet."""
    report = ordered(zygote, place, "cascade")
    assert len(set(report["stages"])) >= 3, report["stages"]


@pytest.mark.slow
def test_a_chain_of_a_strangers_method_leaves_no_trace_either(zygote: subprocess.Popen[str], place: Path) -> None:
    (place / "vlbench.toml").write_text("")
    (place / "methods").mkdir()
    (place / "methods" / "odd.py").write_text(ODD)
    steps = {f"{link}.steps": "4" for link in ("odd", "finetune")}
    sizes = {f"{link}.batch_size": "6" for link in ("odd", "finetune")}
    more = {"method": "uniform+odd+finetune", "odd.lr": "0.01", "finetune.warmup": "0", **steps, **sizes}
    report = ordered(zygote, place, "cascade", reach=0.8, words={**cell_words(place), **more})
    assert {"round", "finetune"} <= set(report["stages"]), report["stages"]


@pytest.mark.slow
def test_of_two_at_once_one_works_and_the_other_reads(zygote: subprocess.Popen[str], place: Path) -> None:
    report = ordered(zygote, place, "two")
    logs = [Path(log).read_text() for log in report["logs"]]
    assert sum("finetune 1" in log for log in logs) == 1
    assert sum("another vlbench works on this cell" in log for log in logs) == 1


@pytest.mark.slow
def test_the_command_goes_on_after_two_kills(zygote: subprocess.Popen[str], place: Path) -> None:
    """The real command, killed at random times after it began to write."""
    ordered(zygote, place, "nothing")
    draw = random.Random(3)
    for _ in range(CLI_KILLS):
        run = subprocess.Popen(
            command(place, "killed"), env=environment(place), cwd=place,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = newest(place / "killed")
        while newest(place / "killed") == before and run.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.6))
        run.send_signal(signal.SIGKILL)
        assert run.wait() in (-signal.SIGKILL, 0)  # 0: so fast that it had ended
    done = subprocess.run(
        command(place, "killed", "--json"), env=environment(place), cwd=place, check=True, capture_output=True
    )
    assert json.loads(done.stdout)["complete"]
    assert final_files(place / "killed") == final_files(place / "calm")


def newest(folder: Path) -> float:
    """When anything below `folder` last changed."""
    found = 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            found = max(found, path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def finished(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of runs of a finished cell."""
    monkeypatch.setenv("VLBENCH_DATA", str(place / "data"))
    run(place)
    return place / "runs"


class Killed(BaseException):
    """Stands for SIGKILL, where the process is to live on."""


def run(place: Path, kill: tuple[str, int] | None = None) -> None:
    """The cell in this process, killed after a step of a stage."""
    from vlbench.run import Runner
    from vlbench.ui import Screen

    class Deadly(Screen):
        def progress(self, what: str, done: int, total: int, text: str = "") -> None:
            if (what, done) == kill:
                raise Killed

    Runner(place / "runs", Deadly(quiet=True), checkpoint_seconds=0.0).run(words(place))


def cell(runs: Path, name: str) -> Path:
    (found,) = runs.glob(f"*-{name}-*")
    return found


def flipped(text: str) -> str:
    """One score changed to another that is as valid."""
    return (
        text.replace('"score":[0.0,', '"score":[1.0,', 1) if '"score":[0.0,' in text else text.replace("1.0", "0.0", 1)
    )


@pytest.mark.parametrize(
    ("where", "name", "damage"),
    [
        ("upop", "result.json", lambda text: text[: len(text) // 2]),
        ("upop", "result.json", lambda text: "[]"),
        ("dense", "result.json", lambda text: text.replace('"samples"', '"sample"')),
        ("dense", "predictions.jsonl", lambda text: text[: len(text) // 2]),
        ("dense", "predictions.jsonl", lambda text: "".join(text.splitlines(keepends=True)[:-1])),
        ("dense", "predictions.jsonl", flipped),
        ("upop", "predictions.jsonl", lambda text: text.replace("status", "stat")),
        ("upop", "model/vlbench.json", lambda text: text.replace('"steps": 12', '"steps": 13')),
        ("upop", "model/config.json", lambda text: text.replace("16", "32")),
    ],
)
def test_damage_is_told_with_its_file(
    finished: Path, where: str, name: str, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By the real command: exit code 2 and one sentence."""
    from vlbench import cli

    if (where, name) != ("upop", "result.json"):
        (cell(finished, "upop") / "result.json").unlink()
    file = cell(finished, where) / name
    before = file.read_text()
    file.write_text(damage(before))
    assert file.read_text() != before
    monkeypatch.setattr(sys, "argv", command(finished.parent, str(finished))[2:])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert str(file) in told
    assert len(told.splitlines()) == 1
    file.write_text(before)
    run(finished.parent)


def test_predictions_of_a_deleted_model_are_not_taken_over(finished: Path) -> None:
    """On a GPU the model made in its place is another one."""
    calm = final_files(finished)
    folder = cell(finished, "upop")
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    text = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(flipped(text))
    run(finished.parent)
    assert final_files(finished) == calm


@pytest.mark.parametrize(("kill", "stage"), [(("upop_search", 4), "upop_search"), (("finetune", 3), "finetune")])
def test_a_damaged_checkpoint_is_told_and_nothing_is_lost(
    place: Path, kill: tuple[str, int], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlbench.errors import UserError

    monkeypatch.setenv("VLBENCH_DATA", str(place / "data"))
    with pytest.raises(Killed):
        run(place, kill)
    folder = cell(place / "runs", "upop") / "checkpoint" / stage
    data = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"checkpoint .*{stage} is damaged: delete that folder"):
        run(place)
    (folder / "state.safetensors").write_bytes(data)
    run(place)
    assert (cell(place / "runs", "upop") / "result.json").is_file()


@pytest.mark.parametrize("moment", [("upop_search", 3), ("finetune", 4), ("evaluate upop", 4)])
def test_who_lost_its_cell_while_it_slept_stops_and_takes_the_others_result(
    place: Path, moment: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's lease, which is dead as soon as the sleeper has noticed: it goes on from what is on disk."""
    from vlbench import lease
    from vlbench.run import Runner
    from vlbench.ui import Screen

    monkeypatch.setenv("VLBENCH_DATA", str(place / "data"))
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)
    run(place)
    (place / "runs").rename(place / "calm")
    said: list[str] = []

    class Sleepy(Screen):
        def say(self, text: str) -> None:
            said.append(text)

        def progress(self, what: str, done: int, total: int, text: str = "") -> None:
            if (what, done) == moment and not said:
                mine = cell(place / "runs", "upop") / "lease.json"
                mine.write_text(json.dumps({**json.loads(mine.read_text()), "started": "another", "token": "another"}))
                until(runner._lost.is_set)

    runner = Runner(place / "runs", Sleepy(), checkpoint_seconds=0.0)
    runner.run(words(place))
    assert said == ["another vlbench took this cell over while this machine gave no sign of life"]
    assert final_files(place / "runs") == final_files(place / "calm")


def test_a_disk_that_is_full_at_any_moment_costs_a_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, no half file; with room again the same words end like an undisturbed run."""
    from vlbench.errors import UserError

    monkeypatch.setenv("VLBENCH_DATA", str(place / "data"))
    run(place)
    (place / "runs").rename(place / "calm")
    real, syncs = os.fsync, [0]
    for moment in (1, 3, 7, 20, 33, 47):
        syncs[0] = 0

        def fsync(handle: int, moment: int = moment) -> None:
            syncs[0] += 1
            if syncs[0] >= moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(UserError, match=r"cannot write .*runs.*: No space left on device"):
                run(place)
    run(place)
    assert final_files(place / "runs") == final_files(place / "calm")


def test_runs_that_cannot_be_written_are_told_before_any_work(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlbench import cli

    (place / "runs").write_text("a file")
    monkeypatch.setenv("VLBENCH_DATA", str(place / "data"))
    monkeypatch.setattr(sys, "argv", command(place, str(place / "runs"))[2:])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "cannot write in" in capsys.readouterr().err
    assert (place / "runs").read_text() == "a file"
