"""METEOR and SPICE through the Java programs that pycocoevalcap brings; Unavailable where they cannot run.

pycocoevalcap's own classes are not used: Meteor talks line by line to a process that it never limits, and Spice
downloads 400 MB when it is created and writes into site-packages. The programs and their options are the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# The answers must not depend on the locale.
JAVA = ("java", "-Dfile.encoding=UTF-8", "-Duser.language=en")
METEOR_JAR = "meteor-1.5.jar"
METEOR_SECONDS = (600.0, 0.2)  # to start, and for each image: a hundred times what a quiet machine takes
SPICE_JAR = "spice-1.0.jar"
SPICE_SECONDS = (900.0, 3.0)
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_ZIP = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
# SPICE's cache looks into classes that Java 9 and later lock; older ones ignore the option.
UNLOCKED = (
    "-XX:+IgnoreUnrecognizedVMOptions",
    *(
        f"--add-opens=java.base/java.{package}=ALL-UNNAMED"
        for package in ("lang", "math", "net", "nio", "text", "util", "util.concurrent")
    ),
)

# METEOR 1.5's parameters for English (Denkowski & Lavie, WMT 2014, and the program's Parameters class).
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
STAGES = (1.0, 0.6, 0.8, 0.6)  # weights of an exact match, of stems, of synonyms and of paraphrases
STATISTICS = 23  # numbers in the program's answer


class Unavailable(Exception):  # noqa: N818 - it reads as what happened
    """Why a metric is not measured, in one sentence."""


def meteor_missing() -> str | None:
    """Why METEOR cannot be measured here, if that shows before it is tried."""
    return _missing("METEOR", "meteor", METEOR_JAR)


def spice_missing() -> str | None:
    """Why SPICE cannot be measured here, if that shows before it is tried."""
    reason = _missing("SPICE", "spice", SPICE_JAR)
    library = _folder("spice") / "lib"
    if reason is None and not all((library / name).is_file() for name in CORENLP):
        reason = f"SPICE needs {' and '.join(CORENLP)} of {CORENLP_ZIP} in {library}."
    return reason


def meteor_statistics(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[list[float]]:
    """For each image the six numbers whose sums give the corpus METEOR (see `meteor`), against its best reference.

    They are tokenised texts: METEOR's own normaliser works on these, as in pycocoevalcap.
    """
    if reason := meteor_missing():
        raise Unavailable(reason)
    lines = [
        " ||| ".join(("SCORE", *map(_field, texts), _field(text))) for texts, text in _pairs(references, candidates)
    ]
    command = (*JAVA, "-Xmx2G", "-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm")
    start, each = METEOR_SECONDS
    answer = _run("METEOR", command, _folder("meteor"), "".join(f"{x}\n" for x in lines), start + each * len(lines))
    try:
        rows = [_summable([float(number) for number in line.split()]) for line in answer.splitlines()]
    except ValueError as error:
        raise Unavailable(f"METEOR's program gave an answer that is none: {error}.") from None
    if len(rows) != len(lines):
        raise Unavailable(f"METEOR's program answered {len(rows)} of {len(lines)} lines.")
    return rows


def meteor(statistics: Sequence[float]) -> float:
    """METEOR in [0, 1] of one image's six numbers, or of their sums over a corpus."""
    matched, said, length, wanted, chunks, words = statistics
    if not matched or not said:
        return 0.0
    precision, recall = matched / length, said / wanted
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return mean * (1.0 - GAMMA * math.pow(chunks / words, BETA))


def spice(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[float]:
    """SPICE in [0, 1] of each image: the F-score over all kinds of propositions."""
    if reason := spice_missing():
        raise Unavailable(reason)
    rows = [
        {"image_id": number, "test": text, "refs": list(texts)}
        for number, (texts, text) in enumerate(_pairs(references, candidates))
    ]
    start, each = SPICE_SECONDS
    with tempfile.TemporaryDirectory(prefix="vlbench-spice-") as name:
        given, answer, cache = Path(name, "in.json"), Path(name, "out.json"), Path(name, "cache")
        cache.mkdir()
        given.write_text(json.dumps(rows), encoding="utf-8")
        options = (str(given), "-cache", str(cache), "-out", str(answer), "-subset", "-silent")
        command = (*JAVA, *UNLOCKED, "-Xmx8G", "-jar", SPICE_JAR, *options)
        _run("SPICE", command, _folder("spice"), "", start + each * len(rows))
        try:
            items = json.loads(answer.read_bytes())
            values = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in items}
            scores = [values[number] for number in range(len(rows))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"SPICE's program gave an answer that is none: {error!r}.") from None
    if not all(map(math.isfinite, scores)):
        raise Unavailable(f"SPICE's program gave no number for {sum(map(math.isnan, scores))} images.")
    return scores


def _pairs(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[tuple[Sequence[str], str]]:
    return list(zip(references, candidates, strict=True))


def _field(text: str) -> str:
    """A text that neither ends a line nor a field of METEOR's input."""
    return " ".join(text.replace("|||", "").split("\n"))


def _summable(numbers: Sequence[float]) -> list[float]:
    """[weighted matches in the candidate, in the reference, weighted lengths of both, chunks, matched words].

    The program's numbers are: words of candidate and reference, function words of both, then for each stage the
    content words matched in both and the function words matched in both, chunks, matched words of both. A corpus
    does not count the chunk of a candidate that equals its reference, nor is that penalised.
    """
    if len(numbers) != STATISTICS:
        raise ValueError(f"{len(numbers)} numbers, not {STATISTICS}")
    stages = [numbers[4 + 4 * k : 8 + 4 * k] for k in range(len(STAGES))]
    chunks, words = numbers[20], (numbers[21] + numbers[22]) / 2
    weighted = []
    for side in (0, 1):
        content = sum(weight * stage[side] for weight, stage in zip(STAGES, stages, strict=True))
        function = sum(weight * stage[2 + side] for weight, stage in zip(STAGES, stages, strict=True))
        weighted.append(DELTA * content + (1 - DELTA) * function)
    lengths = [DELTA * (numbers[i] - numbers[2 + i]) + (1 - DELTA) * numbers[2 + i] for i in (0, 1)]
    whole = all(sum(stage[i] + stage[2 + i] for stage in stages) == numbers[i] for i in (0, 1))
    return [*weighted, *lengths, 0.0 if whole and chunks == 1 else chunks, words]


def _folder(name: str) -> Path:
    """A folder of pycocoevalcap, found without importing it: its modules start Java and download."""
    spec = find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0] if places else "pycocoevalcap", name)


def _missing(metric: str, folder: str, jar: str) -> str | None:
    if shutil.which(JAVA[0]) is None:
        return f"{metric} needs Java: install a Java runtime (8 or later) whose java is on the PATH."
    if not (_folder(folder) / jar).is_file():
        return f"{metric} needs {_folder(folder) / jar}, which pycocoevalcap brings: install that again."
    return None


def _run(metric: str, command: Sequence[str], folder: Path, given: str, seconds: float) -> str:
    """What a program prints. It runs in its own process group, all of which is ended when the time is up."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise Unavailable(f"{metric}'s Java did not start: {error.strerror}.") from None
    try:
        printed, said = process.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{metric}'s Java was ended after {seconds:.0f} s without an answer.") from None
    finally:
        _end(process)
    if process.returncode:
        raise Unavailable(f"{metric}'s Java failed (exit status {process.returncode}): {_first_line(said)}.")
    return printed


def _first_line(said: str) -> str:
    """The line that says what went wrong: the virtual machine names its options before it."""
    lines = (line.strip() for line in said.splitlines() if not line.startswith("Picked up "))
    return next((line.rstrip(".")[:200] for line in lines if line), "it gave no reason")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
