"""Runs one scenario and judges it: the few lines that every fuzz target, replay, the minimizer and the bench share."""

from __future__ import annotations

from typing import NamedTuple

import guest.snapshots
import reference_impl.world
from oracles import judge
from oracles.finding import Finding
from reference_impl.scenario import Scenario
from reference_impl.trace import Trace


class Verdict(NamedTuple):
    """What came of one run."""

    trace: Trace
    findings: list[Finding]


def run_and_judge(scenario: Scenario) -> Verdict:
    """Run `scenario` in a world of its own and let every oracle judge the trace.

    In the efi-image world it raises ImageError where an image cannot be had or started, and ExtraMissing.
    """
    run = guest.snapshots.run if scenario.world == "efi-image" else reference_impl.world.run
    trace = run(scenario)
    return Verdict(trace, judge(trace))
