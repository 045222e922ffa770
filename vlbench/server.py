"""Scores that only an evaluation server can give (VQAv2 test-dev)."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError
from .storage import read_json, write_json
from .weights import file_digest


def enter_score(run: Path, file: Path) -> Path:
    """Store the server's {metric: value} beside the predictions it was given for. Never mixed with measured rows."""
    if not (run / "predictions.jsonl").is_file():
        raise UserError(f"{run} is no finished run of an unlabelled split: run it first.")
    found = read_json(file)
    if not isinstance(found, dict) or not all(isinstance(v, int | float) for v in found.values()) or not found:
        raise UserError(f"{file} should be JSON like {{\"accuracy\": 77.4}}, with numbers only.")
    told = {"server": found, "predictions": file_digest(run / "predictions.jsonl"), "flags": ["server-scored"]}
    path = run / "server.json"
    write_json(path, told)
    return path
