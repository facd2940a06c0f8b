"""The boot services table that one image calls through."""

from __future__ import annotations

from reference_impl.uefi.core import Core
from reference_impl.uefi.driver_binding import DriverBindingServices
from reference_impl.uefi.events import EventServices
from reference_impl.uefi.exit_boot_services import ExitServices
from reference_impl.uefi.handle_database import ProtocolServices
from reference_impl.uefi.memory import MemoryServices


class BootServices(EventServices, ProtocolServices, DriverBindingServices, MemoryServices, ExitServices):
    """gBS of one image: all services on one core, called in the name of `agent`.

    agent         the image's name in traces, "XenBusDxe"
    image_handle  its handle, 0 for callers that are no image (the firmware itself)
    """

    __slots__ = ("agent", "core", "image_handle")

    def __init__(self, core: Core, agent: str, image_handle: int = 0) -> None:
        self.core = core
        self.agent = agent
        self.image_handle = image_handle
