"""Runs one scenario and judges it: the few lines that every fuzz target, replay, the minimizer and the bench share."""

from __future__ import annotations

from typing import NamedTuple

from oracles import judge
from oracles.finding import Finding
from reference_impl.scenario import Scenario
from reference_impl.trace import Trace
from reference_impl.world import run


class Verdict(NamedTuple):
    """What came of one run."""

    trace: Trace
    findings: list[Finding]


def run_and_judge(scenario: Scenario) -> Verdict:
    """Run `scenario` in a world of its own and let every oracle judge the trace."""
    trace = run(scenario)
    return Verdict(trace, judge(trace))
