"""What a seeded fault consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from reference_impl.uefi.core import Core
from reference_impl.xen.platform import XenPlatform
from reference_impl.xenbus.bus_driver import XenBus, XenBusDriver
from reference_impl.xenbus.designs.base import Design
from reference_impl.xenbus.front_end import FrontEnd, FrontEndDriver


def _as_it_is(design: Design) -> Design:
    return design


class Fault(NamedTuple):
    """One deliberate mistake: a part of the machine that stands in the place of the right one.

    description    a sentence for people
    record         the public bug that it stands for, by its id in `campaign.public_bugs` ("ebs-memory-direct"); "" for
                   one of our own
    rules          what oracles may report for it, "oracle/rule"; the first is what it is about
    deep           whether it takes so many stages that generation without feedback hardly finds it
    environment    the environment that it needs, and `switches` its switches
    design         makes the faulty teardown design out of the scenario's
    core           the firmware's core
    platform       what is outside of the guest: hypervisor, xenstored, backends
    bus_driver     XenBusDxe, and `bus` what it is on one controller
    device_driver  a driver of devices, and `front_end` what it is on one controller
    """

    description: str
    record: str = ""
    rules: tuple[str, ...] = ()
    deep: bool = False
    environment: str = "conforming"
    switches: tuple[str, ...] = ()
    design: Callable[[Design], Design] = _as_it_is
    core: type[Core] = Core
    platform: type[XenPlatform] = XenPlatform
    bus_driver: type[XenBusDriver] = XenBusDriver
    bus: type[XenBus] = XenBus
    device_driver: type[FrontEndDriver] = FrontEndDriver
    front_end: type[FrontEnd] = FrontEnd


CORRECT = Fault("nothing is wrong")


STILL_CONNECTED = (
    *("hand-over/device", "hand-over/grant-left", "hand-over/event-channel-left"),
    "connection-reset/premature-reset",
)
"""What may be reported where a device has not let go of its peer at the exit."""

IN_SOME_ORDERS = ("order-independence/verdict-differs", "order-independence/state-differs")
"""What may be reported besides where it hangs on the order of notifications what is wrong, or who does it."""

NEVER_RESET = ("connection-reset/missed-reset", "hand-over/store", "hand-over/grant-table")
"""What may be reported where the connection is not reset."""

RESET_TOO_EARLY = (
    *("connection-reset/premature-reset", "connection-reset/use-after-reset", "connection-reset/double-reset"),
    *("hand-over/store", "hand-over/device", "hand-over/grant-left", "hand-over/event-channel-left"),
)
"""What may be reported where devices say goodbye over a connection that has been reset."""


def changed(right: object, **members: object) -> type:
    """The class `right` with other members."""
    assert isinstance(right, type)
    return type(f"Faulty{right.__name__}", (right,), members)
