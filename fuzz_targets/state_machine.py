"""The platform world under Hypothesis's RuleBasedStateMachine: each rule draws one operation.

A second way to generate, independent of our own: the tests use it, and `ebsfuzz score` and `scripts/bench` compare with
it. Needs hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from reference_impl.scenario import (
    DEVICE_KINDS,
    MAX_DEVICES,
    OPERATIONS,
    Choice,
    Operation,
    Scenario,
    kinds_permitted,
    scenario,
    values_permitted,
)


def state_machine(
    designs: tuple[str, ...],
    run: Callable[[Scenario], None],
    *,
    fault: str = "",
    environment: str = "conforming",
    switches: tuple[str, ...] = (),
) -> type[RuleBasedStateMachine]:
    """A machine whose examples are scenarios of the platform world; `run` gets each of them at its end.

    designs                are drawn from
    environment, switches  of which a hostile scenario draws some
    """

    class Machine(RuleBasedStateMachine):
        """One scenario; each rule adds one operation."""

        def __init__(self) -> None:
            super().__init__()
            self.head: dict[str, Any] | None = None
            self.operations: list[Operation] = []

        @initialize(
            design=st.sampled_from(designs),
            devices=st.lists(st.sampled_from(DEVICE_KINDS), max_size=MAX_DEVICES).map(tuple),
            reconnection=st.booleans(),
            order=st.one_of(st.sampled_from(["edk2", "fifo"]), st.permutations(range(4)).map(tuple)),
            switches=st.sets(st.sampled_from(switches)).map(sorted).map(tuple) if switches else st.just(()),
        )
        def begin(self, **values: Any) -> None:
            """What the machine is."""
            self.head = values

        def teardown(self) -> None:
            """Hand the scenario on."""
            if self.head is not None:
                operations = tuple(self.operations)
                run(scenario(fault=fault, environment=environment, operations=operations, **self.head))

    for kind in kinds_permitted("platform", switches):
        setattr(Machine, kind.replace("-", "_"), _rule_for(kind, switches))
    return Machine


def _rule_for(kind: str, switches: tuple[str, ...]) -> Any:
    fields = [field for field in OPERATIONS[kind].fields if isinstance(field, Choice)]

    def step(self: Any, **values: Any) -> None:
        self.operations.append(Operation(kind, tuple(values[field.name] for field in fields)))

    step.__name__ = kind.replace("-", "_")
    drawn: Any = {field.name: st.sampled_from(values_permitted(field, switches)) for field in fields}
    decorate: Any = rule(**drawn)
    return decorate(step)
