"""Hypothesis strategies for scenarios: every valid one can come."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from reference_impl.faulty import FAULTS
from reference_impl.scenario import (
    DEVICE_KINDS,
    ENVIRONMENTS,
    MACHINES,
    MAX_DEVICES,
    MAX_IMAGES,
    MAX_ORDER,
    OPERATIONS,
    SWITCHES,
    WORLDS,
    Blob,
    Field,
    Operation,
    Scenario,
    designs_of,
    is_image_name,
    operations_of,
    scenario,
)


def _values(field: Field) -> st.SearchStrategy[Any]:
    return st.binary(max_size=field.size_max) if isinstance(field, Blob) else st.sampled_from(field.values)


def operations(world: str) -> st.SearchStrategy[Operation]:
    """Any operation of a world."""
    return st.one_of(
        st.tuples(*map(_values, OPERATIONS[kind].fields)).map(lambda arguments, kind=kind: Operation(kind, arguments))
        for kind in operations_of(world)
    )


orders = st.one_of(
    st.sampled_from(("edk2", "fifo")),
    st.integers(2, MAX_ORDER).flatmap(lambda length: st.permutations(range(length))).map(tuple),
)
image_names = st.text(min_size=1, max_size=60).filter(is_image_name)


@st.composite
def scenarios(draw: Any, max_operations: int = 12) -> Scenario:
    """Any valid scenario with at most so many operations."""
    world = draw(st.sampled_from(tuple(WORLDS)))
    environment = draw(st.sampled_from(tuple(ENVIRONMENTS))) if world in MACHINES else "conforming"
    switches = draw(st.sets(st.sampled_from(tuple(SWITCHES)))) if environment == "hostile" else ()
    return scenario(
        world=world,
        design=draw(st.sampled_from(designs_of(world) or ("",))),
        images=tuple(draw(st.lists(image_names, max_size=MAX_IMAGES))) if world == "efi-image" else (),
        environment=environment,
        switches=tuple(sorted(switches)),
        fault=draw(st.sampled_from(("", *FAULTS))),
        reconnection=draw(st.booleans()),
        devices=tuple(draw(st.lists(st.sampled_from(DEVICE_KINDS), max_size=MAX_DEVICES))),
        order=draw(orders),
        operations=tuple(draw(st.lists(operations(world), max_size=max_operations))),
    )


def checked(made: Scenario) -> Scenario:
    """The same scenario, after every check; raises ValueError where it is not valid, and fails where not canonical."""
    again = scenario(**{name: getattr(made, name) for name in Scenario.__dataclass_fields__})
    assert again == made
    return again
