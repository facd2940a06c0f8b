"""Markdown as GitHub and GitLab read it: text that stays text, tables, and fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(
    r"[\\`*\[\]<>|~#!&]|(?<![^\W_])_|_(?![^\W_])"
)  # an underscore inside a word is none of Markdown's
_BACKTICKS = re.compile(r"`+")


def escaped(text: str) -> str:
    """Text on one line, in which nothing is markup."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))


def code(text: str) -> str:
    """Text in the middle of a line, as code; also in a table, where a bar would end the cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (_longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever is in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]], right: frozenset[int] = frozenset()) -> str:
    """A table of cells that are Markdown already; columns whose place is in `right` are numbers."""
    headings = list(headings)
    ruler = ["--:" if place in right else "---" for place in range(len(headings))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ruler, *rows))


def _longest_run(text: str) -> int:
    return max(map(len, _BACKTICKS.findall(text)), default=0)
