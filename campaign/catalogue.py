"""The page about the seeded faults, docs/faults.md: made from the faults themselves by scripts/faults.

Nothing on it is written by hand but the words here, so that it cannot say what is not so.
"""

from __future__ import annotations

from campaign.markdown import code, escaped, table
from campaign.public_bugs import BUGS, link_of
from reference_impl.faulty import FAULTS, faulty
from reference_impl.faulty.fault import Fault

NOT_SHOWN: dict[str, str] = {
    "before-ebs-map-churn": "a BEFORE notification may allocate, and the core signals that group once (UEFI 2.10 §7.1.2, "
    "§7.4.6); the loader of this world fetches the map after it has been notified, so that it gets on",
    "ebs-dirty-cache": "a request is served as a whole before it returns: there is no cache whose content could be lost",
    "loader-no-retry": "the loader is the scenario itself; what it does or leaves is not under test",
}
"""Public bugs for which there is no fault, and why this world cannot show one."""

_WORDS = """\
# Seeded faults

A fault is a deliberate mistake in a driver, the bus, a peer or the firmware's core, small enough to be read at one glance
(`reference_impl/faulty/`). It says what oracles are worth: each must be reported under one of its own rules, and nothing
else beside it. Oracles know nothing of this list.

`ebsfuzz run --fault NAME` fuzzes with a fault built in, in the environment that it needs, and `ebsfuzz list faults` names
them all. The smallest scenario that shows a fault is `corpus/lifecycle/regressions/NAME.yaml`: replay it and read its
timeline. A run never starts from these scenarios, as they are the answers.

This page is made by `./scripts/faults`.
"""

_DEEP = """\
A deep fault is a machine that wears out in stages, each of which needs the one before it. What the stages are stands in
the docstring of its class in `reference_impl/faulty/deep.py`. Each leaves a mark in the trace, so that a fuzzer with
feedback can climb; generation without feedback has to hit all stages in one scenario.
"""


def page() -> str:
    """The whole page as Markdown."""
    shallow = [name for name in FAULTS if not faulty(name).deep]
    deep = [name for name in FAULTS if faulty(name).deep]
    return "\n".join(
        (
            _WORDS,
            f"## {len(shallow)} shallow faults\n",
            _faults(shallow),
            f"\n## {len(deep)} deep faults\n",
            _DEEP,
            _faults(deep),
            "\n## Public bugs\n",
            "What the faults stand for, and where that is recorded.\n",
            _bugs(),
            "",
        )
    )


def _faults(names: list[str]) -> str:
    rows = []
    for name in names:
        fault = faulty(name)
        first, *others = map(code, fault.rules)
        rows.append((code(name), _sentence(fault), ", ".join((f"**{first}**", *others)), code(fault.record or "–")))
    return table(("fault", "what is wrong", "rules that may be reported, its own first", "stands for"), rows)


def _sentence(fault: Fault) -> str:
    needs = [fault.environment, *fault.switches] if fault.environment != "conforming" else []
    return escaped(fault.description) + (f" (needs {', '.join(map(code, needs))})" if needs else "")


def _bugs() -> str:
    rows = []
    for name, bug in BUGS.items():
        faults = [code(fault) for fault in FAULTS if faulty(fault).record == name]
        shown = ", ".join(faults) if faults else f"none: {escaped(NOT_SHOWN[name])}"
        places = ", ".join(f"[{escaped(place)}]({link})" if (link := link_of(place)) else place for place in bug.places)
        rows.append((code(name), escaped(bug.what), places, shown))
    return table(("public bug", "what was wrong", "recorded in", "faults"), rows)
