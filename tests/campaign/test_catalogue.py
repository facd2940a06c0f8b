"""The page about the seeded faults says what the faults are."""

from __future__ import annotations

from campaign.catalogue import NOT_SHOWN, page
from campaign.corpus import CHECKOUT
from campaign.public_bugs import BUGS
from reference_impl.faulty import FAULTS, faulty


def test_the_page_in_the_checkout_is_up_to_date():
    """Made again with scripts/faults after every change of a fault."""
    assert (CHECKOUT / "docs" / "faults.md").read_text(encoding="utf-8") == page()


def test_every_public_bug_has_a_fault_or_a_reason_for_having_none():
    """And no fault stands for a bug that is not in the list."""
    stood_for = {faulty(name).record for name in FAULTS} - {""}
    assert stood_for | set(NOT_SHOWN) == set(BUGS)
    assert not stood_for & set(NOT_SHOWN)
    assert all(NOT_SHOWN.values())


def test_the_page_has_a_line_for_every_fault_and_every_bug():
    """Names stand as code, and deep faults in a table of their own."""
    lines = page().splitlines()
    for name in (*FAULTS, *BUGS):
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == (2 if name in FAULTS and name in BUGS else 1)
    deep = lines.index(f"## {sum(faulty(name).deep for name in FAULTS)} deep faults")
    for name in FAULTS:
        line = next(at for at, text in enumerate(lines) if text.startswith(f"| `{name}` |"))
        assert (line > deep) == faulty(name).deep


def test_the_page_names_the_environment_that_a_fault_needs():
    """Where it is not the conforming one."""
    line = next(line for line in page().splitlines() if line.startswith("| `handler-polls-without-limit` |"))
    assert "(needs `hostile`, `silent-peers`)" in line
