"""What every driver here has in common: an image with one driver binding, and one instance for each managed controller."""

from __future__ import annotations

from typing import Protocol

from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.status import EfiError, EfiStatus


class Instance(Protocol):
    """A driver on one controller."""

    def start(self) -> None:
        """Take everything that is needed; on a refusal give back what was taken, and raise."""

    def stop(self, children: tuple[int, ...]) -> None:
        """Stop the children that are named, or, where none is named, give everything back."""


class Driver:
    """A driver binding (`reference_impl.uefi.driver_binding.DriverBinding`) that keeps its instances by controller.

    A subclass says what it can manage (`supported`) and makes an instance (`make`).
    """

    version = 0x10

    def __init__(self, services: BootServices) -> None:
        self.services = services
        self.agent = services.agent
        self.image_handle = services.image_handle
        self.driver_binding_handle = services.image_handle
        self.instances: dict[int, Instance] = {}

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether this driver can manage the controller; changes nothing (UEFI 2.10 §11.1)."""
        raise NotImplementedError

    def make(self, controller: int) -> Instance:
        """A new instance for the controller; nothing is taken yet."""
        raise NotImplementedError

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Begin to manage the controller. A refusal leaves everything as it was (UEFI 2.10 §11.1)."""
        if controller in self.instances:
            raise EfiError(EfiStatus.ALREADY_STARTED)
        instance = self.make(controller)
        instance.start()
        self.instances[controller] = instance

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Stop managing children, or the controller (UEFI 2.10 §11.1)."""
        instance = self.instances.get(controller)
        if instance is None:
            raise EfiError(EfiStatus.DEVICE_ERROR)
        instance.stop(children)
        if not children:
            # Stop() may have been entered once more from inside: test_stop_that_is_entered_again_ends.
            self.instances.pop(controller, None)

    def unload(self, image_handle: int) -> None:
        """Let go of every controller, then of the driver binding. Refuses where a controller cannot be let go."""
        for controller in list(self.instances):
            self.services.disconnect_controller(controller, self.driver_binding_handle, 0)
        self.leave(image_handle)

    def leave(self, image_handle: int) -> None:
        """Take the driver binding away, and nothing else: the end of Unload, and all that a careless one does."""
        interface = self.services.handle_protocol(self.driver_binding_handle, guids.DRIVER_BINDING_PROTOCOL)
        self.services.uninstall_protocol_interface(self.driver_binding_handle, guids.DRIVER_BINDING_PROTOCOL, interface)
