"""docs/rules.md says which promise is checked by which rule, and where each rule stands."""

from __future__ import annotations

import re
from pathlib import Path

from oracles import RULES

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "rules.md").read_text("utf-8")
PROMISES, _, ORACLES = PAGE.partition("## From the oracle to the promise")
KNOWN = [f"{oracle}/{rule}" for oracle, rules in RULES.items() for rule in rules]


def test_every_rule_is_there_with_its_source_and_sentence():
    """In the order of the oracles; a rule that changes changes its line."""
    lines = [line for line in ORACLES.splitlines() if line.startswith("| `")]
    assert lines == [
        f"| `{oracle}/{rule}` | {source} | {sentence} |"
        for oracle, rules in RULES.items()
        for rule, (source, sentence) in rules.items()
    ]


def test_every_promise_names_rules_that_exist_and_every_rule_has_its_promise():
    """Where nothing checks a promise, the page says why."""
    rows = [line for line in PROMISES.splitlines() if re.match(r"\| (\d|Xen)", line)]
    named = {rule for row in rows for rule in re.findall(r"`([a-z-]+/[a-z-]+)`", row)}
    assert named == set(KNOWN)
    assert all("`" in row or "| nothing: " in row for row in rows)
