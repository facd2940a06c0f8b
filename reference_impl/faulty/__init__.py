"""Seeded faults: deliberately wrong drivers, buses, peers and cores, by name.

Each is a small deviation from the correct code, shown as such. `Fault` says what it can put in the place of the right
thing. A file holds the faults of one concept:

* `teardown`: what bus and devices do wrong when the machine is handed over
* `start_stop`, `events`, `memory`, `references`: what they do wrong with one sort of thing, at any time
* `processor`: what they do that no processor survives
* `core`, `platform`: what is wrong around them
* `deep`: faults that show only after many stages, each of which needs the one before it

`FAULTS` names them all; `faulty(name)` gives one, and the world builds with it. docs/faults.md lists them.
"""

from __future__ import annotations

from reference_impl.faulty import core, deep, events, memory, platform, processor, references, start_stop, teardown
from reference_impl.faulty.fault import CORRECT, Fault

_MODULES = (teardown, start_stop, events, memory, processor, references, core, platform, deep)

_REGISTRY: dict[str, Fault] = {name: fault for module in _MODULES for name, fault in module.FAULTS.items()}

FAULTS: dict[str, str] = {name: fault.description for name, fault in _REGISTRY.items()}
"""Name → a sentence that says what is wrong."""


def faulty(name: str) -> Fault:
    """The fault of this name; "" is the correct code."""
    return _REGISTRY[name] if name else CORRECT
