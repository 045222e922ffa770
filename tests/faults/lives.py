"""Lives of a small cell: started, disturbed, started again; and what must then be on disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import make_data, make_weights, write_toml

ROOT = Path(__file__).resolve().parents[2]
TRAINED = {"finetune.steps": "16", "finetune.warmup": "2", "finetune.batch_size": "12"}
METHODS: dict[str, dict[str, str]] = {
    "upop": {"interval": "2", "upop_search.steps": "16", "upop_search.batch_size": "12", **TRAINED},
    "wanda": {"sparsity": "0.5", "calibration_samples": "64"},
    # Its statistics are kept for other cells, in runs/calibration.
    "shared": {"method": "wanda", "propagate": "dense", "sparsity": "0.5", "calibration_samples": "16"},
    "magnitude+finetune": {"magnitude.sparsity": "0.5", **TRAINED},
    "uniform+odd+finetune": {"odd.steps": "6", "odd.batch_size": "12", "odd.lr": "0.01", **TRAINED},
    "dense": {},
}
# A stranger's restorer that does all that a resumed run could miss: it draws random numbers, leaves parameters frozen
# for the next link, trains twice under one name, and leaves a gradient behind.
ODD = '''"""odd: as hard to go on from as a method can be."""

import torch

from vlbench.method import Method, method
from vlbench.training.loop import Schedule


@method("odd", title="Odd", role="restorer", uses_seed=True)
class Odd(Method):
    """Two rounds of training the head and the feed-forward layers, each after a random step of the head."""

    Options = Schedule

    def apply(self, job):
        net = job.model.net
        for name, parameter in net.named_parameters():
            parameter.requires_grad_("head" in name or "mlp" in name)
        for _ in range(2):
            with torch.no_grad():
                net.head.weight.add_(torch.randn_like(net.head.weight))
            job.train("round", self.options)
            job.loss(job.data.calibration(2)[0]).backward()
'''
STAGES = {
    "upop": ["evaluate dense", "upop_search", "finetune", "evaluate upop"],
    "wanda": ["evaluate dense", "calibrate", "evaluate wanda"],
    "shared": ["evaluate dense", "calibrate", "evaluate wanda"],
    "magnitude+finetune": ["evaluate dense", "finetune", "evaluate magnitude+finetune"],
    "uniform+odd+finetune": ["evaluate dense", "round", "finetune", "evaluate uniform+odd+finetune"],
    "dense": ["evaluate dense"],
}
TIMES = ("provenance", "phases")  # of a record: seconds, machine, versions; seconds of the phases of an evaluation


@dataclass
class Life:
    """How a life ended. code: of the process, a negative one is a signal. stage: what it was at last. steps: changes
    of files that it made. said: its stderr and stdout."""

    code: int
    seconds: float
    stage: str
    steps: int
    said: str


@dataclass
class Place:
    """A workspace with a random DeiT of width 16, data of three classes, and a warm server."""

    folder: Path
    server: subprocess.Popen[str]
    calm: dict[str, Life] = field(default_factory=dict)  # method -> its undisturbed life

    def words(self, method: str, runs: Path, *more: str, checkpoint_every: float = 0.0) -> list[str]:
        told = {"task": "imagenet", "model": "deit-mini", "suite": "full", "checkpoint": str(self.folder / "weights")}
        told |= {"evaluation.batch_size": "8", "method": method, **METHODS[method]}
        words = [f"{key}={value}" for key, value in told.items()]
        return ["run", *words, "--runs", str(runs), "--checkpoint-every", str(checkpoint_every), "--json", *more]

    def command(self, words: list[str], watched: Path, **how: Any) -> Life:
        """One life of any command; steps are counted in the folder `watched`."""
        log = self.folder / "logs" / "command"
        log.parent.mkdir(exist_ok=True)
        order = {"words": words, "cwd": str(self.folder), "runs": str(watched), "log": str(log), **how}
        return self._ended([order])[0]

    def lives(self, method: str, runs: Path, *disturbances: Mapping[str, Any], every: float = 0.0) -> list[Life]:
        """As many lives at once as there are disturbances."""
        orders = []
        for number, how in enumerate(disturbances):
            log = self.folder / "logs" / f"{runs.name}.{number}"
            log.parent.mkdir(exist_ok=True)
            words = self.words(method, runs, checkpoint_every=every)
            orders.append({"words": words, "cwd": str(self.folder), "runs": str(runs), "log": str(log), **how})
        return self._ended(orders)

    def _ended(self, orders: list[dict[str, Any]]) -> list[Life]:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps({"lives": orders}) + "\n")
        self.server.stdin.flush()
        told = _answer(self.server)
        saids = [_read(Path(order["log"])) for order in orders]
        return [
            Life(code, told["seconds"], told["stage"], told["steps"], said)
            for code, said in zip(told["codes"], saids, strict=True)
        ]

    def live(self, method: str, runs: Path, every: float = 0.0, **how: Any) -> Life:
        return self.lives(method, runs, how, every=every)[0]

    def undisturbed(self, method: str) -> Path:
        """The folder of runs of an undisturbed life."""
        runs = self.folder / f"calm-{method}"
        if method not in self.calm:
            self.calm[method] = life = self.live(method, runs)
            assert life.code == 0, life.said
        return runs


def _read(log: Path) -> str:
    """Nothing of one that was killed before it had a log."""
    return log.read_text(errors="replace") if log.is_file() else ""


def _answer(server: subprocess.Popen[str]) -> Any:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, "the server failed: its traceback is on stderr"
    return json.loads(line)


@contextmanager
def place_in(folder: Path) -> Iterator[Place]:
    make_data(folder / "data", train=24, val=24, size=64)
    make_weights(folder / "weights")
    (folder / "weights" / "model.safetensors").chmod(0o644)  # a test is another user
    write_toml(folder, {"imagenet": folder / "data"})
    (folder / "methods").mkdir()
    (folder / "methods" / "odd.py").write_text(ODD)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment["VLBENCH_WORKSPACE"] = str(folder)  # some tests run as another user
    environment.pop("VLBENCH_DATA", None)
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, cwd=folder) as server:
        assert _answer(server) == "ready"
        yield Place(folder, server)
        server.kill()


def final_files(runs: Path) -> dict[str, bytes]:
    """Every file of every cell, whatever its name, but for leases (killed after the record was written, a run leaves
    its own, which nobody asks for any more); of a record all but TIMES."""
    found: dict[str, bytes] = {}
    for file in sorted(p for p in runs.rglob("*") if p.is_file() and p.name != "lease.json"):
        content = file.read_bytes()
        if file.name == "result.json":
            record = json.loads(content)
            assert set(TIMES) <= record.keys()
            content = json.dumps({k: v for k, v in record.items() if k not in TIMES}).encode()
        if file.name == "sums.json":  # has the digest of the record, which counts its times
            sums = json.loads(content)["sums"]
            content = json.dumps({k: v for k, v in sums.items() if k != "result.json"}).encode()
        found[file.relative_to(runs).as_posix()] = content
    return found


def half_written(runs: Path) -> list[str]:
    """Files under their final names that are not whole: what a reader could take for whole."""
    wrong = []
    for file in sorted(p for p in runs.rglob("*") if p.is_file() and not _temporary(p, runs)):
        content = file.read_bytes()
        try:
            if file.suffix == ".json":
                json.loads(content)
            elif file.suffix == ".jsonl":
                assert content.endswith(b"\n")
                [json.loads(line) for line in content.splitlines()]
        except (ValueError, AssertionError) as error:
            wrong.append(f"{file}: {error}")
    wrong += [f"{f}: {e}" for f in _folders(runs) if (e := _unsound(f))]
    return wrong


def _temporary(path: Path, runs: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(runs).parts)


def _folders(runs: Path) -> list[Path]:
    """Models and training states that stand under their final names: all folders but cells and those of folders.
    Where the cell's model stands nobody reads the states any more, and they are being removed."""
    found = [p for p in runs.glob("*/**/*") if p.is_dir() and not _temporary(p, runs)]
    found = [p for p in found if p.name == "model" or not (runs / p.relative_to(runs).parts[0] / "model").exists()]
    # Nor is a folder that so far only somebody's lease stands in: statistics for other cells, which are being taken.
    inside = {p: [q for q in p.iterdir() if q.name != "lease.json"] for p in found}
    return [p for p, files in inside.items() if files and not any(q.is_dir() for q in files)]


def _unsound(folder: Path) -> str:
    """Why a reader refuses the folder."""
    from vlbench.disk.digests import MANIFEST, file_digest
    from vlbench.disk.storage import read_sealed
    from vlbench.errors import UserError

    try:
        if (folder / MANIFEST).exists():
            files = read_sealed(folder / MANIFEST)["files"]
        else:
            files = {"state.safetensors": read_sealed(folder / "meta.json")["sha256"]}
    except (UserError, OSError) as error:
        return str(error)
    wrong = [name for name, sha in files.items() if file_digest(folder / name) != sha]
    return f"{wrong} differ" if wrong else ""


@dataclass
class Campaign:
    """Kills at random moments, and what became of the cells. Reproduced by (seed, kills)."""

    place: Place
    seed: int
    cells: int = 0
    kills: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0

    def run(self, kills: int) -> None:
        draw = random.Random(self.seed)
        methods = list(METHODS)
        while self.kills < kills:
            method = methods[self.cells % len(methods)]
            self._cell(method, draw, min(draw.randint(1, 3), kills - self.kills))

    def _cell(self, method: str, draw: random.Random, wanted: int) -> None:
        calm = self.place.undisturbed(method)
        self.longest = max(self.longest, self.place.calm[method].seconds)
        runs = self.place.folder / f"killed-{self.cells}"
        self.cells += 1
        told = f"cell {self.cells - 1} of seed {self.seed} ({method})"
        for _ in range(wanted):
            life = self.place.live(method, runs, **self._moment(method, draw))
            if life.code != -signal.SIGKILL:
                assert life.code == 0, f"{told}: {life.said}"
                break
            self.kills += 1
            self.stages[life.stage] += 1
            self.failures += [f"{told}: {line}" for line in half_written(runs)]
        life = self.place.live(method, runs)
        if life.code != 0:
            self.failures.append(f"{told}: exit {life.code}; {life.said[-500:]}")
        ours, theirs = final_files(runs), final_files(calm)
        wrong = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
        self.failures += [f"{told}: {name} differs" for name in wrong]

    def _moment(self, method: str, draw: random.Random) -> dict[str, Any]:
        """At a random time of the cell, at a random time of a random stage, or before a random change of a file."""
        calm = self.place.calm[method]
        ways: list[dict[str, Any]] = [
            {"after": draw.uniform(0.0, calm.seconds)},
            {"after": draw.uniform(0.0, 0.2), "stage": draw.choice(STAGES[method])},
            {"kill_step": draw.randint(1, calm.steps)},
        ]
        return draw.choice(ways)

    def report(self) -> str:
        where = ", ".join(f"{name} {number}" for name, number in self.stages.most_common())
        return (
            f"seed {self.seed}: {self.kills} kills in {self.cells} cells of at most {self.longest:.1f} s; "
            f"{len(self.failures)} failures; killed at: {where}"
        )
