"""The platform world under Hypothesis: rules draw operations, and the correct designs stay without findings.

It is a second way to generate, independent of our own, and the engine that `scripts/bench` compares with.
"""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from oracles import judge
from reference_impl.scenario import DEVICE_KINDS, MAX_DEVICES, OPERATIONS, Choice, Operation, operations_of, scenario
from reference_impl.world import PlatformWorld
from tests.scenarios import CORRECT_DESIGNS


class WorldMachine(RuleBasedStateMachine):
    """One world; each rule does one operation. `lengths` collects what the bench needs: operations and records."""

    lengths: ClassVar[list[tuple[int, int]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.world: PlatformWorld | None = None
        self.count = 0

    @initialize(
        design=st.sampled_from(CORRECT_DESIGNS),
        devices=st.lists(st.sampled_from(DEVICE_KINDS), max_size=MAX_DEVICES),
        reconnection=st.booleans(),
        order=st.one_of(st.sampled_from(["edk2", "fifo"]), st.permutations(range(4)).map(tuple)),
    )
    def build(self, **values: Any) -> None:
        """A new machine."""
        values["devices"] = tuple(values["devices"])
        self.world = PlatformWorld(scenario(**values))

    def do(self, kind: str, values: dict[str, Any]) -> None:
        """Do one operation."""
        assert self.world is not None
        self.world.do(self.count, Operation(kind, tuple(values[field.name] for field in OPERATIONS[kind].fields)))
        self.count += 1

    def teardown(self) -> None:
        """Whatever was done: the correct designs keep every promise."""
        if self.world is not None:
            self.lengths.append((self.count, len(self.world.trace.records)))
            assert judge(self.world.trace) == []


def _rule_for(kind: str) -> Any:
    fields = {
        field.name: st.sampled_from(field.values) for field in OPERATIONS[kind].fields if isinstance(field, Choice)
    }

    def step(self: WorldMachine, **values: Any) -> None:
        self.do(kind, values)

    step.__name__ = kind.replace("-", "_")
    return rule(**fields)(step)


for _kind in operations_of("platform"):
    setattr(WorldMachine, _kind.replace("-", "_"), _rule_for(_kind))

TestWorldMachine = WorldMachine.TestCase
TestWorldMachine.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
