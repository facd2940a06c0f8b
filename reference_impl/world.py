"""From a scenario to a trace: builds the world that the scenario asks for and does its operations one after another."""

from __future__ import annotations

from reference_impl.scenario import Scenario
from reference_impl.trace import Trace


def run(scenario: Scenario) -> Trace:
    """Run `scenario` in a new world. The same scenario gives the same trace."""
    raise NotImplementedError
