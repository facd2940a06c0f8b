"""`reference-count`: the counter-proposal. Whoever lets go last resets the connection.

The bus protocol gains AddReference and RemoveReference(HandOffToOs). A device driver adds a reference just before its
Start succeeds, and removes it in Stop (FALSE) or, last of all, in its ExitBootServices notification (TRUE). The order of
notifications does not matter: if the bus's comes first it sees a positive count and leaves the reset to the last device.
"""

from __future__ import annotations

from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown, ExitEvent


class Bus(BusTeardown):
    """Counts the devices that still need the connection, and remembers whether the machine is being handed over."""

    count = 0
    hand_off_to_os = False

    def add_reference(self, node: str) -> None:
        """AddReference of the child `node`: one more device needs the connection."""
        self.count += 1
        self.bus.record_reference("AddReference", (node,), self.count)

    def remove_reference(self, node: str, hand_off_to_os: bool) -> None:
        """RemoveReference of the child `node`: one device less. The last one at the exit resets the connection."""
        self.count -= 1
        self.hand_off_to_os = hand_off_to_os
        self.bus.record_reference("RemoveReference", (node, hand_off_to_os), self.count)
        if hand_off_to_os and self.count == 0:
            self.bus.reset_connection()

    def exit(self) -> None:
        """Reset the connection, unless a device will do it or has done it."""
        if self.count <= 0 and not self.hand_off_to_os:
            self.bus.reset_connection()


class Device(DeviceTeardown):
    """Holds a reference while the device is started, and has an event of its own for each controller."""

    def started(self) -> None:
        """Create the event, then add the reference, which cannot fail."""
        services = self.device.services
        self._event = ExitEvent(services, self._notify, self.device.allocation)
        io = self.device.io
        io.teardown.add_reference(io.node)

    def stopping(self) -> None:
        """Close the event and give the reference back: RemoveReference(FALSE)."""
        self._event.close()
        io = self.device.io
        io.teardown.remove_reference(io.node, False)

    def _notify(self, event: int, context: int) -> None:
        device = self.device.services.core.object_at(context, self.device.services.agent)
        device.forget()
        device.io.teardown.remove_reference(device.io.node, True)


DESIGN = Design(Bus, Device, careless=False)
