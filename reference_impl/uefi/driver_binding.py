"""Driver binding: which driver manages which controller, and images that bring drivers.

* `connect` and `disconnect` are the core's own way to do it, used by the services and by the handle database (which
  disconnects drivers from a protocol that is about to go). They record nothing but what they enter and allocate.
* `DriverBindingServices` are the boot services ConnectController, DisconnectController, LoadImage, StartImage and
  UnloadImage.
* An image's code lives elsewhere: in Python, or in a guest. `LoadedImage` is what the firmware knows of it.

Supported, Start, Stop, Unload and the override protocols run at the TPL of whoever called the service: no lock is held.

What deliberately lives elsewhere: handles, protocols and open records (`handle_database`).

Sources: UEFI 2.10 §7.3.12, §7.3.13, §7.4, §11.1 to §11.5; edk2's MdeModulePkg/Core/Dxe for what they leave open.

Where edk2 differs
* It looks at further Driver Family Override protocols only where the last driver binding happens to have one. Here all
  are taken, highest version first, as §7.3.12 has it.
* It holds several buffers for ConnectController's candidates. Here one stands for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from reference_impl.uefi import guids
from reference_impl.uefi.core import Core, service
from reference_impl.uefi.definitions import BY_CHILD_CONTROLLER, BY_DRIVER
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.handle_database import Handle

MAX_DEPTH = 100
"""Nested services and entry points after which a run counts as stuck, before Python's own stack is used up."""

IMAGE_SIZE_BYTES = 144  # EFI_LOADED_IMAGE_PROTOCOL, and behind it the image's own EFI_DRIVER_BINDING_PROTOCOL
BINDING_OFFSET_BYTES = 96

_HANDLE_SIZE_BYTES = 8
_END_OF_DEVICE_PATH = b"\x7f\xff"


class DriverBinding(Protocol):
    """EFI_DRIVER_BINDING_PROTOCOL (UEFI 2.10 §11.1) of a driver in Python. A refusal is an EfiError.

    agent                  name of the driver in traces
    version                a higher one is asked first
    image_handle           the image that the driver came in
    driver_binding_handle  where this protocol is installed; the agent of what the driver opens
    """

    agent: str
    version: int
    image_handle: int
    driver_binding_handle: int

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether the driver can manage `controller`; changes nothing."""

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Begin to manage `controller`."""

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Destroy `children`, or, where there are none, end managing `controller`."""


class LoadedImage:
    """What the firmware knows of an image: the object at the interface of its EFI_LOADED_IMAGE_PROTOCOL.

    agent    the image's name in traces
    unload   entry point `unload(image_handle)`, set by the image itself; None: it cannot be unloaded
    address  where it stands; 0 once the image is gone
    """

    __slots__ = ("address", "agent", "unload")

    def __init__(self, agent: str, address: int) -> None:
        self.agent = agent
        self.unload: Callable[[int], None] | None = None
        self.address = address


class DriverBindingServices:
    """The boot services of this module."""

    __slots__ = ()

    core: Core
    agent: str

    @service("ConnectController")
    def connect_controller(
        self,
        controller: int,
        driver_handles: tuple[int, ...] = (),
        remaining_device_path: bytes | None = None,
        recursive: bool = False,
    ) -> None:
        """Connect drivers to `controller`, those of `driver_handles` first, and to its children where `recursive`.

        EFI_INVALID_PARAMETER: no such controller. EFI_OUT_OF_RESOURCES. EFI_NOT_FOUND: no driver was started, and the
        remaining device path is not just an end node. UEFI 2.10 §7.3.12.
        """
        connect(self.core, controller, driver_handles, remaining_device_path, recursive)

    @service("DisconnectController")
    def disconnect_controller(self, controller: int, driver_handle: int = 0, child: int = 0) -> None:
        """Disconnect one driver (0: all) from `controller`, or let it destroy one child (0: all of them, and itself).

        EFI_INVALID_PARAMETER: no such controller or child. EFI_OUT_OF_RESOURCES. EFI_INVALID_PARAMETER: the agent has
        no driver binding. EFI_NOT_FOUND: nothing was stopped; the driver's own status is lost. UEFI 2.10 §7.3.13.
        """
        disconnect(self.core, controller, driver_handle, child)

    @service("LoadImage")
    def load_image(self, agent: str) -> int:
        """Load the image `agent`, whose code is elsewhere, and give its image handle.

        The image counts as started. It sets `core.handles.loaded_image(handle).unload` itself, as an image does in its
        entry point. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.4.1.
        """
        return load(self.core, agent)

    @service("StartImage")
    def start_image(self, image_handle: int) -> None:
        """Refused, as every image counts as started once it is loaded: EFI_INVALID_PARAMETER. UEFI 2.10 §7.4.2."""
        raise EfiError(EfiStatus.INVALID_PARAMETER)

    @service("UnloadImage")
    def unload_image(self, image_handle: int) -> None:
        """Ask the image to unload, close what it left open as agent, drop it.

        EFI_INVALID_PARAMETER: no such image. EFI_UNSUPPORTED: the image has no Unload. What its Unload answers. The
        image handle stays where the image left other protocols on it (edk2). UEFI 2.10 §7.4.3.
        """
        core = self.core
        database = core.handles
        image = database.loaded_image(image_handle)
        if image is None:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        if image.unload is None:
            raise EfiError(EfiStatus.UNSUPPORTED)
        status = _enter(core, image.agent, "Unload", (image_handle,), image.unload)
        if status:
            raise EfiError(status)
        if not image.address:
            return  # unloaded once more from inside of its own Unload
        database.close_all(image_handle)
        address, image.address = image.address, 0
        with suppress(EfiError):  # held open, or gone already; edk2 drops the image all the same
            database.uninstall(image_handle, guids.LOADED_IMAGE_PROTOCOL, address)
        core.free(address)


def load(core: Core, agent: str) -> int:
    """Make an image handle with EFI_LOADED_IMAGE_PROTOCOL. Raises EfiError(OUT_OF_RESOURCES), then nothing was made."""
    address = core.allocate(IMAGE_SIZE_BYTES)
    try:
        handle = core.handles.install(0, guids.LOADED_IMAGE_PROTOCOL, address)
    except EfiError:
        core.free(address)
        raise
    core.place(address, LoadedImage(agent, address), address)
    return handle


def connect(
    core: Core,
    controller: int,
    driver_handles: tuple[int, ...] = (),
    remaining_device_path: bytes | None = None,
    recursive: bool = False,
    depth: int = 0,
) -> None:
    """ConnectController inside the core. `depth` counts its own recursion, which a circle of children makes endless."""
    database = core.handles
    if controller not in database.handles:
        raise EfiError(EfiStatus.INVALID_PARAMETER)
    _spend(core, core.outer_agent, "ConnectController", depth)
    copy = 0 if remaining_device_path is None else core.allocate(max(1, len(remaining_device_path)))
    status = EfiStatus.SUCCESS
    try:
        if not _connect_single(core, controller, driver_handles, remaining_device_path):
            status = EfiStatus.NOT_FOUND
    except EfiError as error:  # no memory for the candidates
        status = error.status
    if copy:
        core.free(copy)
    if recursive and controller in database.handles:
        children = [
            record.controller
            for instance in database.handles[controller].newest_first()
            for record in instance.opens
            if record.attributes & BY_CHILD_CONTROLLER
        ]
        if children:
            buffer = core.allocate(len(children) * _HANDLE_SIZE_BYTES)
            for child in children:
                with suppress(EfiError):  # a child that cannot be connected, or has gone, is no failure
                    connect(core, child, recursive=True, depth=depth + 1)
            core.free(buffer)
    if status:
        raise EfiError(status)


def _connect_single(core: Core, controller: int, named: tuple[int, ...], remaining_device_path: bytes | None) -> bool:
    """Start every driver that supports `controller`. Whether the call succeeded. Raises EfiError(OUT_OF_RESOURCES)."""
    database = core.handles
    while True:
        count = len(database.handles_with(guids.DRIVER_BINDING_PROTOCOL))
        if not count:
            return False
        # edk2 holds several buffers here; one stands for them.
        buffer = core.allocate(count * _HANDLE_SIZE_BYTES)
        try:
            candidates = _candidates(core, controller, named)
        except EfiError:
            core.free(buffer)
            raise
        if len(database.handles_with(guids.DRIVER_BINDING_PROTOCOL)) <= count:
            break
        core.free(buffer)  # an override protocol brought new drivers: they must be asked too
    started = False
    found = True
    while found:
        found = False
        for index, address in enumerate(candidates):
            binding = _binding(core, address)
            arguments = (controller, remaining_device_path)
            if _enter(core, binding.agent, "Supported", arguments, binding.supported):
                continue
            del candidates[index]  # also where Start fails: it is not asked again
            if not _enter(core, binding.agent, "Start", arguments, binding.start):
                started = True
            found = True
            break
    core.free(buffer)
    return started or (remaining_device_path is not None and remaining_device_path[:2] == _END_OF_DEVICE_PATH)


def _candidates(core: Core, controller: int, named: tuple[int, ...]) -> list[int]:
    """Interfaces of the driver bindings in the order in which they are asked. UEFI 2.10 §7.3.12.

    The caller's list; the platform's, the driver families' and the bus's overrides; the rest by version, highest first.
    Looking at a driver binding leaves a BY_HANDLE_PROTOCOL record of the core's own on it, as HandleProtocol does.
    """
    database = core.handles
    waiting = database.handles_with(guids.DRIVER_BINDING_PROTOCOL)
    ordered: list[int] = []

    def add(handle: int) -> None:
        if handle in waiting:
            waiting.remove(handle)
        address = database.core_opens(handle, guids.DRIVER_BINDING_PROTOCOL)
        if address and address not in ordered:
            ordered.append(address)

    def add_image(image_handle: int) -> None:
        for handle in tuple(waiting):
            address = database.core_opens(handle, guids.DRIVER_BINDING_PROTOCOL)
            binding = binding_at(core, address)
            if binding is not None and binding.image_handle == image_handle:
                add(handle)

    def add_overrides(override: Any, *arguments: int) -> None:
        image_handle: int | None = 0
        while True:
            image_handle = _ask(core, override.agent, "GetDriver", override.get_driver, *arguments, image_handle)
            if image_handle is None:
                return
            add_image(image_handle)

    for handle in named:
        add(handle)

    for handle in database.handles_with(guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL)[:1]:
        address = database.interface_of(handle, guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL)
        override = _object(core, address, "get_driver")
        if override is not None:
            add_overrides(override, controller)

    families = []
    for handle in database.handles_with(guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL):
        if handle in waiting:
            address = database.core_opens(handle, guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL)
            override = _object(core, address, "get_version")
            if override is not None:
                version = _ask(core, override.agent, "GetVersion", override.get_version)
                families.append((-(version or 0), waiting.index(handle), handle))
    for _, _, handle in sorted(families):
        add(handle)

    override = _object(core, database.core_opens(controller, guids.BUS_SPECIFIC_DRIVER_OVERRIDE_PROTOCOL), "get_driver")
    if override is not None:
        add_overrides(override)

    first = len(ordered)
    for handle in tuple(waiting):
        add(handle)
    ordered = [address for address in ordered if binding_at(core, address) is not None]
    _sort_as_edk2(core, ordered, first)
    return ordered


def _sort_as_edk2(core: Core, addresses: list[int], first: int) -> None:
    """Sort `addresses[first:]` by version, highest first.

    By selection and exchange, as edk2 does it: an exchange can turn the order of two equal versions around.
    """
    versions = [_binding(core, address).version for address in addresses]
    for place in range(first, len(addresses)):
        highest = place
        for index in range(place + 1, len(addresses)):
            if versions[index] > versions[highest]:
                highest = index
        addresses[place], addresses[highest] = addresses[highest], addresses[place]
        versions[place], versions[highest] = versions[highest], versions[place]


def disconnect(core: Core, controller: int, driver_handle: int = 0, child: int = 0) -> None:
    """DisconnectController inside the core."""
    database = core.handles
    handles = database.handles
    managed = handles.get(controller)
    if managed is None or (child and child not in handles):
        raise EfiError(EfiStatus.INVALID_PARAMETER)
    buffer = 0
    drivers = [driver_handle]
    if not driver_handle:
        drivers = [
            record.agent
            for instance in managed.newest_first()
            for record in instance.opens
            if record.attributes & BY_DRIVER
        ]
        if not drivers:
            return
        buffer = core.allocate(len(drivers) * _HANDLE_SIZE_BYTES)
        drivers = list(dict.fromkeys(drivers))
    stopped = False
    try:
        for driver in drivers:
            address = database.core_opens(driver, guids.DRIVER_BINDING_PROTOCOL)
            binding = binding_at(core, address)
            if binding is None:
                raise EfiError(EfiStatus.INVALID_PARAMETER)
            stopped = _stop(core, managed, controller, driver, binding, child) or stopped
    finally:
        if buffer:
            core.free(buffer)
    if not stopped:
        raise EfiError(EfiStatus.NOT_FOUND)


def _stop(core: Core, managed: Handle, controller: int, driver: int, binding: DriverBinding, child: int) -> bool:
    """Stop `driver` on `controller`, its children (or the one `child`) first. Whether anything was stopped.

    Nothing is done where the driver does not manage the controller (any more), or where `child` is none of its own.
    With one `child` the driver itself is stopped only if that was its last.
    """
    manages = False
    children: list[int] = []
    for instance in managed.newest_first():
        for record in instance.opens:
            if record.agent == driver:
                if record.attributes & BY_CHILD_CONTROLLER:
                    children.append(record.controller)
                if record.attributes & BY_DRIVER:
                    manages = True
    if not manages:
        return False
    buffer = core.allocate(len(children) * _HANDLE_SIZE_BYTES) if children else 0
    children = list(dict.fromkeys(children))
    if child and child not in children:
        done = False
    else:
        to_stop = (child,) if child else tuple(children)
        done = not to_stop or not _enter(core, binding.agent, "Stop", (controller, to_stop), binding.stop)
        if done and len(to_stop) == len(children):
            done = not _enter(core, binding.agent, "Stop", (controller, ()), binding.stop)
    if buffer:
        core.free(buffer)
    return done


def binding_at(core: Core, address: int) -> DriverBinding | None:
    """The driver binding at an interface address; None where nothing stands there that could be one."""
    return cast("DriverBinding | None", _object(core, address, "supported"))


def _binding(core: Core, address: int) -> DriverBinding:
    """The driver binding at an address where one was found before: what was placed stays, even in freed memory."""
    binding = binding_at(core, address)
    assert binding is not None
    return binding


def _object(core: Core, address: int | None, method: str) -> Any:
    """The object with that method at `address`, or None: a caller can install any protocol with any interface."""
    if not address:
        return None
    try:
        item = core.object_at(address, "DxeCore")
    except EfiError:
        return None
    return item if hasattr(item, method) else None


def _enter(core: Core, agent: str, entry: str, arguments: tuple[Any, ...], function: Callable[..., Any]) -> EfiStatus:
    """Enter driver code with `arguments`, within the step budget: a driver may be asked again and again."""
    _spend(core, agent, entry, core.trace.depth)
    return core.enter(agent, entry, arguments, function, *arguments)


def _ask(core: Core, agent: str, entry: str, function: Callable[..., int], *arguments: Any) -> int | None:
    """Enter driver code that answers a value; None where it refuses."""
    answers: list[int] = []
    status = _enter(core, agent, entry, arguments, lambda *asked: answers.append(function(*asked)))
    return None if status else answers[0]


def _spend(core: Core, agent: str, name: str, depth: int) -> None:
    """Stop the run where it has used up its step budget, or nests without bound; `agent` is named."""
    if depth > MAX_DEPTH or len(core.trace.records) > core.step_budget:
        core.give_up(agent, "step-budget", name)
