"""Oracles: from a trace to findings. One family of rules a file; an oracle needs nothing but the trace.

An oracle is a module with `ORACLE` (its name), `RULES` (what it can report: rule → source and sentence) and
`check(reading)`. To add one is to write it and to name it in `_MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from oracles import (
    connection_reset,
    event_lifetime,
    guest_fault,
    hand_over,
    memory_ownership,
    memory_services,
    order_independence,
    protocol_usage,
    reference_count,
    start_stop,
    tpl,
    waiting,
)
from oracles.finding import Finding, Rule
from oracles.reading import Reading
from reference_impl.trace import Trace

_MODULES = (
    *(connection_reset, reference_count, memory_services, event_lifetime, tpl, protocol_usage, start_stop),
    *(memory_ownership, waiting, hand_over, guest_fault),
)
_COMPARISONS = (order_independence,)
"""Oracles that need several runs of one scenario; `fuzz_targets.harness.run_in_orders` asks them."""

ORACLES: dict[str, Callable[[Reading], Iterable[Finding]]] = {module.ORACLE: module.check for module in _MODULES}
"""Oracles that judge one trace."""

DESCRIPTIONS: dict[str, str] = {
    module.ORACLE: (module.__doc__ or "").partition("\n")[0] for module in (*_MODULES, *_COMPARISONS)
}
"""Oracle → what it asks for, in one sentence."""

RULES: dict[str, dict[str, Rule]] = {module.ORACLE: module.RULES for module in (*_MODULES, *_COMPARISONS)}
"""Oracle → rule → where it stands, and what it asks for."""


def judge(trace: Trace) -> list[Finding]:
    """Every oracle's findings in one trace: one for each signature, where it shows first, in order of steps."""
    reading = Reading(trace)
    first: dict[str, Finding] = {}
    for check in ORACLES.values():
        for finding in check(reading):
            known = first.get(finding.signature)
            if known is None or finding.step < known.step:
                first[finding.signature] = finding
    return sorted(first.values(), key=lambda finding: (finding.step, finding.signature))
