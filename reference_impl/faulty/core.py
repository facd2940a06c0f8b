"""Faults of the firmware's core: notifications that come twice, or when they should not.

Drivers may rely on a core that notifies once (UEFI 2.10 §7.4.6). What becomes of them under one that does not is the
core's fault. The design is `exit-callback`, which bears it.
"""

from __future__ import annotations

from reference_impl.failures import Failures
from reference_impl.faulty.fault import Fault
from reference_impl.trace import Trace
from reference_impl.uefi import guids
from reference_impl.uefi.core import STEP_BUDGET, Core
from reference_impl.uefi.events import Events
from reference_impl.xenbus.designs import exit_callback
from reference_impl.xenbus.designs.base import Design


def _exit_callback(design: Design) -> Design:
    return exit_callback.DESIGN


class _SignalsTwice(Events):
    __slots__ = ()

    def signal_group(self, group: str) -> None:
        super().signal_group(group)
        if group == guids.EVENT_GROUP_EXIT_BOOT_SERVICES:
            super().signal_group(group)


class _SignalsTwiceCore(Core):
    def __init__(self, trace: Trace, failures: Failures, step_budget: int = STEP_BUDGET) -> None:
        super().__init__(trace, failures, step_budget)
        self.events = _SignalsTwice(self)
        self.events.on_close = self.handles.event_closed


FAULTS: dict[str, Fault] = {
    "core-notifies-twice": Fault(
        "the core signals the ExitBootServices group twice",
        "ebs-repeated",
        ("event-lifetime/notified-twice", "connection-reset/double-reset"),
        design=_exit_callback,
        core=_SignalsTwiceCore,
    ),
}
