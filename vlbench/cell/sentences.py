"""A pydantic error as sentences that say what to do."""

from __future__ import annotations

from pydantic import ValidationError


def _sentences(error: ValidationError, prefix: str) -> list[str]:
    """One sentence for every wrong field."""
    sentences = []
    for mistake in error.errors():
        where = prefix + ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ").removesuffix(".")
        if mistake["type"] == "missing":
            sentences.append(f"{where}= is missing.")
        elif mistake["type"] == "value_error" and not mistake["loc"]:
            sentences.append(f"{prefix.rstrip('.')}: {message}." if prefix else f"{message}.")
        elif message.startswith(f"{mistake['input']} "):
            sentences.append(f"{where}={message}.")
        elif message.startswith("Input should"):
            sentences.append(f"{where}={mistake['input']} {message.removeprefix('Input ')}.")
        else:
            sentences.append(f"{where}={mistake['input']}: {message[0].lower() + message[1:]}.")
    return sentences
