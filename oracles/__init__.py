"""Oracles: from a trace to findings. One family of rules a file; an oracle needs nothing but the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from oracles import connection_reset, hand_over, memory_services
from oracles.finding import Finding
from reference_impl.trace import Trace

ORACLES: dict[str, Callable[[Trace], Iterable[Finding]]] = {
    "connection-reset": connection_reset.check,
    "memory-services": memory_services.check,
    "hand-over": hand_over.check,
}


def judge(trace: Trace) -> list[Finding]:
    """Every oracle's findings in one trace: one for each signature, the first step at which it shows, in order of steps."""
    first: dict[str, Finding] = {}
    for check in ORACLES.values():
        for finding in check(trace):
            known = first.get(finding.signature)
            if known is None or finding.step < known.step:
                first[finding.signature] = finding
    return sorted(first.values(), key=lambda finding: (finding.step, finding.signature))
