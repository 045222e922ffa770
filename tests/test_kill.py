"""kill -9 at random moments, then the same command: the same final files as an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

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
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import safetensors.torch, torch.utils.flop_counter
from vlbench.plugins import table
from vlbench.run import Runner
from vlbench.ui import Screen
for kind, names in (("models", ["deit-mini"]), ("tasks", ["imagenet"]), ("methods", ["dense", "upop", "finetune"])):
    for name in names:
        table(kind).get(name).load()
order = json.loads(sys.argv[1])
STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.utime", "open"}

class Log(Screen):
    # what a life told, for the parent
    def __init__(self, file): super().__init__(quiet=True); self.file = file
    def say(self, text): self.write("say " + text)
    def progress(self, what, done, total, text=""): self.write(f"{what} {done}")
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

def begin(runs, log=os.devnull, at=None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        count = kill_at(at or 0, runs)
        Runner(Path(runs), Log(log), checkpoint_seconds=0.0).run(order["words"])
        Path(runs + ".steps").write_text(str(count()))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)

def end(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"exit {status}"
    return status == 0

def life(runs, seconds=None, at=None):
    # whether it ended by itself
    child = begin(runs, at=at)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return end(child)

def stage(runs):
    # where the pruned cell stood when it was killed
    names = {p.relative_to(cell).as_posix() for cell in Path(runs).glob("*upop*") for p in cell.rglob("*")}
    marks = ["result.json", "predictions.jsonl", "predictions.part", "model", "checkpoint/finetune",
             "checkpoint/after-0-upop_search", "checkpoint/upop_search"]
    return next((mark for mark in marks if mark in names), "start")

def killed(moment):
    # lives of the same words end at moments until order["kills"] have; where one ends by itself a new folder is begun
    folders, stages = [order["killed"] + "-0"], []
    while len(stages) < order["kills"]:
        if life(folders[-1], **moment()):
            folders.append(order["killed"] + f"-{len(folders)}")
        else:
            stages.append(stage(folders[-1]))
    for folder in folders:
        life(folder)
    return {"folders": folders, "stages": stages}

draw = random.Random(order["seed"])
start = time.monotonic()
life(order["calm"])
whole, steps = time.monotonic() - start, int(Path(order["calm"] + ".steps").read_text())
if order["how"] == "times":
    told = killed(lambda: {"seconds": draw.uniform(0.0, 0.6 * whole)})
elif order["how"] == "steps":
    told = killed(lambda: {"at": draw.randint(1, steps // 2)})
elif order["how"] == "every":
    told = {"folders": [], "stages": []}
    for number in range(order["range"][0], min(order["range"][1], steps + 2), order["range"][2]):
        folder = order["killed"] + f"-{number}"
        if not life(folder, at=number):
            told["stages"].append(stage(folder))
            life(folder)
        told["folders"].append(folder)
else:
    logs = [order["killed"] + ".log0", order["killed"] + ".log1"]
    children = [begin(order["killed"], log) for log in logs]
    told = {"ended": [end(child) for child in children], "folders": [order["killed"]], "logs": logs}
print(json.dumps({**told, "whole": whole, "steps": steps}))
"""


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


def words(place: Path) -> dict[str, str]:
    return {
        "task": "imagenet", "model": "deit-mini", "suite": "full", "checkpoint": str(place / "weights"),
        "method": "upop", "upop_search.steps": "6", "interval": "2", "finetune.steps": "6", "finetune.warmup": "2",
        "upop_search.batch_size": "6", "finetune.batch_size": "6", "evaluation.batch_size": "4",
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


def in_zygote(place: Path, how: str, **more: Any) -> dict[str, Any]:
    """Run ZYGOTE and return what it reports. Every folder it names must hold the files of the undisturbed run."""
    order = {"how": how, "calm": str(place / "calm"), "killed": str(place / "killed"), "words": words(place), **more}
    told = subprocess.run(
        [sys.executable, "-c", ZYGOTE, json.dumps({"seed": 7, "kills": 10, **order})],
        env=environment(place), cwd=place, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    report: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    expected = final_files(place / "calm")
    assert len(expected) == 2 * 4 + 3  # record, cell, predictions and the listing of two cells; files of one model
    for folder in report["folders"]:
        assert final_files(Path(folder)) == expected, folder
    return report


@pytest.mark.slow
def test_kills_at_random_times_leave_no_trace(place: Path) -> None:
    report = in_zygote(place, "times")
    assert len(set(report["stages"])) >= 3, report["stages"]


@pytest.mark.slow
def test_kills_between_two_steps_on_disk_leave_no_trace(place: Path) -> None:
    """A kill just before a rename, a removal or an opening: moments that random times hardly ever meet."""
    report = in_zygote(place, "steps")
    assert len(set(report["stages"])) >= 3, report["stages"]


@pytest.mark.slow
def test_of_two_at_once_one_works_and_the_other_reads(place: Path) -> None:
    report = in_zygote(place, "two")
    assert report["ended"] == [True, True]
    logs = [Path(log).read_text() for log in report["logs"]]
    assert sum("finetune 1" in log for log in logs) == 1
    assert sum("another vlbench works on this cell" in log for log in logs) == 1


@pytest.mark.slow
def test_the_command_goes_on_after_two_kills(place: Path) -> None:
    """The real command, killed at random times after its first file appeared, and an undisturbed one."""
    subprocess.run(command(place, "calm"), env=environment(place), cwd=place, check=True, capture_output=True)
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
        assert run.wait() == -signal.SIGKILL
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
