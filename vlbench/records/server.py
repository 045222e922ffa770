"""Scores that only an evaluation server can give (VQAv2 test-dev)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..disk.storage import read_json, write_json
from ..errors import UserError


def enter_score(run: Path, file: Path) -> Path:
    """Store the server's {metric: value} beside the predictions it was given for. Never mixed with measured rows."""
    from ..disk.digests import file_digest  # torch comes with it

    if (run / "result.json").is_file():
        raise UserError(f"{run} was scored here: its split has labels, and no server's score is needed.")
    if not (run / "predictions.jsonl").is_file():
        raise UserError(f"{run} is no finished run of an unlabelled split: run it first.")
    if not file.is_file():
        raise UserError(f"file={file} does not exist.")
    scores = _scores(file)
    entry = {"server": scores, "predictions": file_digest(run / "predictions.jsonl"), "flags": ["server-scored"]}
    path = run / "server.json"
    write_json(path, entry)
    return path


def server_score(run: Path) -> dict[str, Any]:
    """What a server returned for a run: `server`, its metrics, and `flags`. Empty where none was entered; a score of
    other predictions than those that lie there is flagged."""
    file = run / "server.json"
    if not file.is_file():
        return {}
    from ..disk.digests import file_digest

    entry = read_json(file)
    if not isinstance(entry, dict) or not {"server", "predictions", "flags"} <= entry.keys():
        raise UserError(f"{file} is no server's score: delete it, and enter the score again (`vlbench score`).")
    predictions = run / "predictions.jsonl"
    same = predictions.is_file() and file_digest(predictions) == entry["predictions"]
    return {"server": entry["server"], "flags": [*entry["flags"], *([] if same else ["of other predictions"])]}


def _scores(file: Path) -> dict[str, float]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        content = None
    sound = isinstance(content, dict) and content and all(_is_number(v) for v in content.values())
    if not sound:
        raise UserError(f'{file} should be JSON like {{"accuracy": 77.4}}, with numbers only.')
    return dict(content)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
