"""Cells as Slurm jobs, on a Slurm of five small programs: submission, requeue on pre-emption, failure, cancelling.

The programs are run as submitit runs the real ones; only that there is one machine, and that sbatch starts a job at
once, is theirs. Stub workers without torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.stub import STUB
from tests.waiting import until
from vlbench.errors import UserError
from vlbench.sweep import process, slurm
from vlbench.sweep.engines import Engine
from vlbench.sweep.executor import Outcome, Work, log_file
from vlbench.sweep.slurm import sbatch_parameters

# One file per job in $FAKE: its state, its script, and the process group that runs it.
PROGRAMS = {
    "sbatch": """
text = Path(sys.argv[1]).read_text()
number = len(list(FAKE.glob("*.sh"))) + 1
if "--partition=nowhere" in text:
    sys.exit("sbatch: error: invalid partition specified: nowhere")
(FAKE / f"{number}.sh").write_text(text)
array = re.search(r"--array='?0-(\\d+)", text)
for task in range(int(array[1]) + 1) if array else [None]:
    start(f"{number}" if task is None else f"{number}_{task}")
print(f"Submitted batch job {number}")
""",
    "srun": """
words = sys.argv[1:]
while words and words[0].startswith("--"):
    option = words.pop(0)
    if option in ("--output", "--error"):
        words.pop(0)
os.execvp(words[0], words)
""",
    "sacct": """
print("JobID|State|NodeList")
for file in FAKE.glob("*.state"):
    print(f"{file.stem}|{file.read_text()}|here")
""",
    "squeue": """
for file in FAKE.glob("*.state"):
    if file.read_text() in ("RUNNING", "PENDING"):
        print(file.stem)
""",
    "scontrol": """
assert sys.argv[1] == "requeue"
(FAKE / f"{sys.argv[2]}.requeued").write_text(Path("runs/logs/a.log").read_text())
""",
    "scancel": """
job = sys.argv[1]
note(job, "CANCELLED")
group = int((FAKE / f"{job}.group").read_text())
with contextlib.suppress(ProcessLookupError):
    os.killpg(group, signal.SIGTERM)
    end = time.monotonic() + 120
    while "told to stop" not in Path("runs/logs/a.log").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    (FAKE / f"{job}.grace").write_text(Path("runs/logs/a.log").read_text())
    os.killpg(group, signal.SIGKILL)
""",
}
HEAD = f"""#!{sys.executable}
import contextlib, os, re, signal, subprocess, sys, time
from pathlib import Path
FAKE = Path(os.environ["FAKE"])

def note(job, state):  # whole: sacct may read at any moment, and for submitit a job without a state has ended
    draft = FAKE / f"{{job}}.{{os.getpid()}}.draft"
    draft.write_text(state)
    draft.replace(FAKE / f"{{job}}.state")

def start(job):
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([sys.executable, str(FAKE / "daemon"), job], start_new_session=True, **quiet)
    (FAKE / f"{{job}}.group").write_text(str(process.pid))
"""
# What slurmctld does of a job: run its script, again where it asked for that, and write down how it ended.
DAEMON = """
job = sys.argv[1]
number, _, task = job.partition("_")
own = {"SLURM_JOB_ID": number, **({"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {})}
while True:
    note(job, "RUNNING")
    with (FAKE / f"{job}.out").open("a") as out:
        code = subprocess.call(["bash", str(FAKE / f"{number}.sh")], env={**os.environ, **own}, stdout=out, stderr=out)
    if not (FAKE / f"{job}.requeued").exists():
        break
    (FAKE / f"{job}.requeued").rename(FAKE / f"{job}.was-requeued")
note(job, "COMPLETED" if code == 0 else "FAILED")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    submitit = pytest.importorskip("submitit", reason="needs submitit: pip install 'vlbench[slurm]'")
    folder = tmp_path / "fake"
    (folder / "bin").mkdir(parents=True)
    for name, text in {**PROGRAMS, "../daemon": DAEMON}.items():
        file = folder / "bin" / name
        file.write_text(HEAD + text)
        file.chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(process, "ARGUMENTS", ("-c", STUB))
    monkeypatch.setattr(slurm, "LOOK", 0.1)
    monkeypatch.setattr(slurm, "SETTLES", 0.1)
    monkeypatch.setattr(submitit.SlurmJob.watcher, "_delay_s", 0.5)
    submitit.SlurmJob.watcher.clear()
    monkeypatch.chdir(tmp_path)
    return folder


def run(executor: Any, **cells: str) -> dict[str, Outcome]:
    executor.submit(Work(name, {"do": do}) for name, do in cells.items())
    try:
        return {outcome.cell: outcome for outcome in executor.outcomes()}
    finally:
        executor.close()


def tries(cell: str) -> int:
    file = Path("runs") / cell / "tries"
    return len(file.read_text().splitlines()) if file.exists() else 0


def start(*words: str, jobs: int | None = None) -> Any:
    return Engine("slurm", jobs, slurm=words).start(Path("runs"), lambda: None)


def test_an_array_of_cells(fake: Path) -> None:
    """One that fails by itself is believed; one whose worker dies is tried again, within its job."""
    found = run(start("partition=gpu", "time=2:00:00", "gpus-per-node=1", "licenses=x"), a="go", b="fail", c="die 1")
    assert {cell: outcome.state for cell, outcome in found.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert found["b"].reason == "a mistake"
    assert [tries(cell) for cell in "abc"] == [1, 1, 2]
    script = (fake / "1.sh").read_text()
    for line in ("array=0-2%3", "partition=gpu", "time=120", "gpus-per-node=1", "licenses=x", "job-name=vlbench"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script
    assert len(list(fake.glob("*.sh"))) == 1
    assert not list(Path("runs/logs/slurm").glob("outcome-*"))


def test_a_job_that_is_pre_empted_is_queued_again_and_resumes(fake: Path) -> None:
    """Slurm's signal, as before a job's time is up: the cell lets go, the job asks for more, and does the rest."""
    executor = start()

    def preempt() -> None:
        until(lambda: tries("a") == 1)
        group = int((fake / "1.group").read_text())
        told = subprocess.check_output(["pgrep", "-g", str(group), "-f", "submitit"], text=True).split()
        os.kill(int(told[-1]), signal.SIGUSR2)

    thread = threading.Thread(target=preempt)
    thread.start()
    found = run(executor, a="once")
    thread.join()
    assert found["a"].state == "done"
    assert tries("a") == 2
    assert "told to stop" in (fake / "1.was-requeued").read_text(), "it was queued again while it held its cell"
    assert len(list(fake.glob("*.sh"))) == 1, "it was submitted anew"


def test_a_job_that_ends_without_a_word_is_tried_three_times(fake: Path) -> None:
    lost = DAEMON.replace('subprocess.call(["bash"', 'subprocess.call(["false"')
    (fake / "daemon").write_text(HEAD + lost)
    found = run(start(), a="go")
    assert found["a"].state == "failed"
    assert "state FAILED" in found["a"].reason
    assert "in each of 3 attempts" in log_file(Path("runs"), "a").read_text()
    assert len(list(fake.glob("*.sh"))) == 3


NO_ACCOUNTING = 'sys.exit("Slurm accounting storage is disabled")'


@pytest.mark.parametrize("queue", ["answers", "does not answer"])
def test_a_lost_node_is_noticed_without_accounting(fake: Path, monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    """Its processes are killed, and nobody writes an outcome: by the queue, or by the lease, the cell is run again."""
    (fake / "bin" / "sacct").write_text(HEAD + NO_ACCOUNTING)
    monkeypatch.setattr(slurm, "QUEUE", 0.2)
    monkeypatch.setattr(slurm.lease, "EXPIRES", 0.5)
    if queue != "answers":
        (fake / "bin" / "squeue").write_text(HEAD + "sys.exit(1)")
    executor = start()

    def lose() -> None:
        until(lambda: tries("a") == 1)
        holder = {"machine": f"{os.uname().nodename} gone", "pid": 2**22 + 1, "since": 0.0}  # a process that is no more
        Path("runs/a/lease.json").write_text(json.dumps(holder))
        os.killpg(int((fake / "1.group").read_text()), signal.SIGKILL)
        (fake / "1.state").write_text("NODE_FAIL")

    thread = threading.Thread(target=lose)
    thread.start()
    found = run(executor, a="once")
    thread.join()
    assert found["a"].state == "done"
    assert tries("a") == 2
    assert len(list(fake.glob("*.sh"))) == 2


def test_without_accounting_nobody_who_works_is_taken_for_lost(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake / "bin" / "sacct").write_text(HEAD + NO_ACCOUNTING)
    monkeypatch.setattr(slurm, "QUEUE", 0.2)
    found = run(start(), a="meet b", b="meet a", c="go")
    assert {outcome.state for outcome in found.values()} == {"done"}
    assert [tries(cell) for cell in "abc"] == [1, 1, 1]
    assert len(list(fake.glob("*.sh"))) == 1


def test_closing_cancels(fake: Path) -> None:
    """SIGTERM: the cell is let go within the time that Slurm leaves it."""
    executor = start()
    executor.submit([Work("a", {"do": "wait"})])
    until(lambda: tries("a") == 1)
    executor.close()
    assert (fake / "1.state").read_text() == "CANCELLED"
    assert "told to stop" in (fake / "1.grace").read_text()
    assert not Path("runs/a/result.json").exists()


def test_what_sbatch_refuses_is_told_in_its_own_words(fake: Path) -> None:
    executor = start("partition=nowhere")
    with pytest.raises(UserError, match=r"sbatch refused the cells: .*invalid partition specified: nowhere"):
        run(executor, a="go")


def test_without_submitit_or_slurm_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(UserError, match=r"pip install 'vlbench\[slurm\]'"):
            start()
    pytest.importorskip("submitit", reason="needs submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="login node"):
        start()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:30", 90), ("2:00:00", 120), ("1-00", 1440), ("1-02:30", 1590)]
)
def test_times_are_slurms(text: str, minutes: int) -> None:
    pytest.importorskip("submitit", reason="needs submitit")
    assert sbatch_parameters({"time": text}, None)["time"] == minutes


@pytest.mark.parametrize(("key", "text"), [("time", "soon"), ("time", "0"), ("time", "1:2:3:4"), ("array", "0-5")])
def test_wrong_parameters_are_told(key: str, text: str) -> None:
    pytest.importorskip("submitit", reason="needs submitit")
    with pytest.raises(UserError, match=f"--slurm {key}={text}"):
        sbatch_parameters({key: text}, None)
