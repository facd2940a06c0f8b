"""Seeded faults: deliberately wrong drivers, by name. Each is a small deviation from the correct code, shown as such.

A fault says what it puts in the place of the right thing: the teardown design, the bus driver or the device drivers.
`FAULTS` names them all; `faulty(name)` gives one, and the world builds with it.
"""

from __future__ import annotations

from reference_impl.faulty import chain, teardown
from reference_impl.faulty.fault import CORRECT, Fault

_REGISTRY: dict[str, Fault] = {**teardown.FAULTS, **chain.FAULTS}

FAULTS: dict[str, str] = {name: fault.description for name, fault in _REGISTRY.items()}
"""Name → a sentence that says what is wrong."""


def faulty(name: str) -> Fault:
    """The fault of this name; "" is the correct code."""
    return _REGISTRY[name] if name else CORRECT
