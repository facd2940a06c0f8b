#!/usr/bin/env python3
"""Must fail: a planted rule that a working fuzzer breaks within seconds. A libFuzzer program.

A fuzzer that finds nothing looks like a program without bugs. This target tells the two apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from oracles.finding import Finding
from reference_impl.scenario import ORDER_EDK2, Scenario
from reference_impl.trace import Kind, Trace

_OPERATION = int(Kind.OPERATION)


def planted(scenario: Scenario, trace: Trace) -> list[Finding]:
    """A finding where devices were connected and then an exit was tried, in another order than edk2's."""
    if not scenario.devices or scenario.order == ORDER_EDK2:
        return []
    connected = False
    for step, (kind, _, _, _, _, name, _, reason, _) in enumerate(trace.records):
        if kind == _OPERATION and reason is None:
            if name == "connect":
                connected = True
            elif name == "exit" and connected:
                return [
                    Finding(
                        oracle="canary",
                        rule="planted",
                        source="fuzz_targets/canary.py",
                        agent="canary",
                        subject="exit",
                        step=step,
                        expected="no exit after a connect in another order than edk2's, with a device",
                        seen="one",
                    )
                ]
    return []


if __name__ == "__main__":
    from fuzz_targets.engine import main

    main("canary")
