"""A page from its template, its style and its script: whole in one file, with every text from data escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SLOT = re.compile(r"@@([A-Z_]+)@@")


def escaped(text: object) -> str:
    """A text as HTML, fit for an attribute as well."""
    return html.escape(str(text), quote=True)


def asset(name: str) -> str:
    """A file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def data_block(value: Any, line: str) -> str:
    """JSON that may stand inside <script>: no "<" is left in it, so that no text can end the element.

    line: the first key of objects that begin a line of their own, so that differences between two pages can be read.
    (No text can hold '{"key":': its quotation marks have a backslash before them.)
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace(f'{{"{line}":', f'\n{{"{line}":')
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def source_hash(text: str) -> str:
    """What a content security policy names an inline style or script by: nothing else is applied or run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with every @@NAME@@ replaced, in one pass: what stands in a part is never read as a name."""
    return SLOT.sub(lambda match: parts[match[1]], template)
