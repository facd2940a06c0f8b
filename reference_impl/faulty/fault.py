"""What a seeded fault consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from reference_impl.xenbus.bus_driver import XenBus
from reference_impl.xenbus.designs.base import Design
from reference_impl.xenbus.front_end import FrontEnd


def _as_it_is(design: Design) -> Design:
    return design


class Fault(NamedTuple):
    """One deliberate mistake.

    description  a sentence for people
    record       the public bug that it stands for ("ebs-memory-direct", tianocore/edk2#9802 …), "" for one of our own
    rules        what oracles may report for it, "oracle/rule"; the first is what it is about
    design       makes the faulty teardown design out of the scenario's
    bus          the bus on one controller
    front_end    a device on one controller
    """

    description: str
    record: str = ""
    rules: tuple[str, ...] = ()
    design: Callable[[Design], Design] = _as_it_is
    bus: type[XenBus] = XenBus
    front_end: type[FrontEnd] = FrontEnd


CORRECT = Fault("nothing is wrong")
