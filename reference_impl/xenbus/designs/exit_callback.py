"""`exit-callback`: patch series v1 of September 2019. The bus calls its children back, then resets the connection.

The bus protocol gains RegisterExitCallback: one callback for each child; None clears it. A device driver registers at the
end of its Start and clears in Stop. The callback makes the backend close, ends the grants and closes the event channel;
it unregisters no watch and frees nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown

ExitCallback = Callable[[int], None]


class Bus(BusTeardown):
    """Keeps one callback for each child, and calls them all before it resets the connection."""

    def __init__(self, bus: object) -> None:
        super().__init__(bus)  # type: ignore[arg-type]
        self._callbacks: dict[str, tuple[str, ExitCallback, int]] = {}

    def register_exit_callback(self, node: str, agent: str, callback: ExitCallback | None, context: int = 0) -> None:
        """RegisterExitCallback of the child `node`: `callback(context)` runs at the exit; None clears it."""
        if callback is None:
            self._callbacks.pop(node, None)
        else:
            self._callbacks[node] = (agent, callback, context)

    def exit(self) -> None:
        """Call every child's callback, then reset ring and grant table."""
        for node in list(self._callbacks):
            if node not in self._callbacks:
                continue  # its device was stopped meanwhile: test_a_device_that_is_stopped_meanwhile_is_not_called_back
            agent, callback, context = self._callbacks[node]
            self.bus.services.core.enter(agent, "ExitCallback", (node,), callback, context)
        self.bus.reset_connection()


class Device(DeviceTeardown):
    """Lets the bus call it at the exit."""

    def started(self) -> None:
        """Register the callback; nothing can fail."""
        io, services = self.device.io, self.device.services
        io.teardown.register_exit_callback(io.node, services.agent, self._callback, self.device.allocation)

    def stopping(self) -> None:
        """Clear the callback."""
        io = self.device.io
        io.teardown.register_exit_callback(io.node, self.device.services.agent, None)

    def _callback(self, context: int) -> None:
        self.device.services.core.object_at(context, self.device.services.agent).forget()


DESIGN = Design(Bus, Device, careless=False)
