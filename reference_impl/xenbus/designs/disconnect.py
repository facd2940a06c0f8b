"""`disconnect`: what ships in edk2. The bus disconnects everything in its notification (tianocore/edk2#9802).

That runs every device driver's Stop and then the bus's own: events are closed, xenstore paths are written through pool
buffers, pools and pages are freed, all while ExitBootServices notifications run.
"""

from __future__ import annotations

from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown


class Bus(BusTeardown):
    """Disconnects its controller from itself."""

    def exit(self) -> None:
        """DisconnectController(controller, this driver, all children)."""
        driver = self.bus.driver
        driver.services.disconnect_controller(self.bus.controller, driver.driver_binding_handle, 0)


DESIGN = Design(Bus, DeviceTeardown, careless=True)
