"""What a teardown design consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from reference_impl.uefi.definitions import EVT_SIGNAL_EXIT_BOOT_SERVICES, TPL_CALLBACK

if TYPE_CHECKING:
    from reference_impl.uefi.boot_services import BootServices
    from reference_impl.xenbus.bus_driver import XenBus
    from reference_impl.xenbus.front_end import FrontEnd


class ExitEvent:
    """One EVT_SIGNAL_EXIT_BOOT_SERVICES event of a driver on one controller.

    The notification's context is the address of the driver's private data, as in C.
    """

    __slots__ = ("_event", "_services")

    def __init__(
        self, services: BootServices, function: Callable[[int, int], None], context: int, tpl: int = TPL_CALLBACK
    ) -> None:
        self._services = services
        self._event = services.create_event(EVT_SIGNAL_EXIT_BOOT_SERVICES, tpl, function, context)

    def close(self) -> None:
        """Close the event: no notification runs afterwards."""
        self._services.close_event(self._event)


class BusTeardown:
    """The bus's side. One for each Start of the bus, so that nothing survives a restart."""

    def __init__(self, bus: XenBus) -> None:
        self.bus = bus
        self._event: ExitEvent | None = None

    def started(self) -> None:
        """Create the bus's event. Raises EfiError, with nothing taken."""
        self._event = ExitEvent(self.bus.services, self.notify, self.bus.allocation)

    def stopping(self) -> None:
        """Close the bus's event, if Start has come so far."""
        if self._event is not None:
            self._event.close()

    def notify(self, event: int, context: int) -> None:
        """The notification function: finds the bus by its context."""
        bus: XenBus = self.bus.services.core.object_at(context, self.bus.services.agent)
        assert bus.teardown is not None
        bus.teardown.exit()

    def exit(self) -> None:
        """What the bus does when its notification runs."""
        raise NotImplementedError


class DeviceTeardown:
    """A device driver's side, on one controller. A design in which the device has nothing to do takes it as it is."""

    def __init__(self, device: FrontEnd) -> None:
        self.device = device

    def started(self) -> None:
        """Prepare for the exit; the last thing of a Start that succeeds. Raises EfiError, with nothing taken."""

    def stopping(self) -> None:
        """Take back what `started` did; the first thing of Stop."""


class Design(NamedTuple):
    """A teardown design: its two sides, and whether the bus is as careless as the one that ships.

    That one takes the buffers of its messages from the pool when it needs them, waits for xenstored without end, and leaves
    a child that it cannot look up.
    """

    bus: Callable[[XenBus], BusTeardown]
    device: Callable[[FrontEnd], DeviceTeardown]
    careless: bool
