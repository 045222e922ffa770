"""The blocks of the README and of docs/, as a reader of the pages meets them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "extend").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)?(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"<!-- not run here: (.+) -->\n$")


@dataclass(frozen=True)
class Block:
    """A fenced block. title: of a file that it is. reason: why it is not run."""

    page: Path
    language: str
    title: str
    text: str
    reason: str

    @property
    def lines(self) -> list[str]:
        """Its commands."""
        return [line for line in self.text.splitlines() if line.strip()]


def blocks(page: Path) -> Iterator[Block]:
    """In the page's order."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        reason = REASON.search(text[: match.start()])
        yield Block(page, match[1] or "", match[2] or "", match[3], reason[1] if reason else "")
