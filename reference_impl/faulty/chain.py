"""A fault six stages deep: what feedback is for.

A bus driver of the design `reference-count` that keeps a worn-out state over its restarts. Each stage needs the one before
it, and each leaves its mark in the driver's state, which the trace shows (`Kind.DRIVER_STATE`): a fuzzer that watches
state can keep the scenario that came one stage further. After the last stage the connection is never reset.

    1  a Start of the bus fails
    2  a Start succeeds
    3  the bus is stopped
    4  it is started again, with at least two devices
    5  one device is stopped, and exactly one goes on
    6  at the exit the bus's notification comes before the device's
"""

from __future__ import annotations

from reference_impl.faulty.fault import Fault
from reference_impl.trace import Kind
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.bus_driver import XenBus
from reference_impl.xenbus.designs import reference_count
from reference_impl.xenbus.designs.base import Design


class _Bus(XenBus):
    """Remembers the stage in its driver, which outlives every Start and Stop."""

    def reach(self, stage: int) -> bool:
        """Go to `stage` if the one before it has been reached; whether that is so."""
        driver = self.driver
        if getattr(driver, "worn", 0) != stage - 1:
            return False
        driver.worn = stage  # type: ignore[attr-defined]
        self.services.core.trace.add(Kind.DRIVER_STATE, self.services.agent, "worn", (), None, stage)
        return True

    def start(self) -> None:
        try:
            super().start()
        except EfiError:
            self.reach(1)
            raise
        self.reach(2)
        if len(self.children) >= 2:
            self.reach(4)

    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children)
        if not children:
            self.reach(3)


class _Teardown(reference_count.Bus):
    def remove_reference(self, node: str, hand_off_to_os: bool) -> None:
        super().remove_reference(node, hand_off_to_os)
        if not hand_off_to_os and self.count == 1:
            self.bus.reach(5)  # type: ignore[attr-defined]

    def exit(self) -> None:
        if self.count > 0 and self.bus.reach(6):  # type: ignore[attr-defined]
            self.count = 1 << 16
        super().exit()


def _design(design: Design) -> Design:
    return reference_count.DESIGN._replace(bus=_Teardown)


FAULTS: dict[str, Fault] = {
    "six-stage-chain": Fault(
        "a bus of the design reference-count that never resets the connection, after six stages that need one another",
        "",
        ("connection-reset/missed-reset", "hand-over/store", "hand-over/grant-table"),
        design=_design,
        bus=_Bus,
    ),
}
