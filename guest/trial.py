"""A trial: an image is started in a world of its own, and what it did is told.

The world is the one of `guest.world` with the real DevicePathDxe, HiiDatabase and EnglishDxe, where the firmware cache
has them, and with these *controllers*, which the image's driver bindings are asked about one after another: the Xen
platform device, a Xen bus, a Xen block device on the model's bus, USB host controllers, and some PCI functions that are
no more than their configuration space and registers that keep what is written to them.

An image may turn in circles, use up all memory or make the emulator crash. So it is started in a process of its own
(`try_image`), which gives itself a limit of processor time; what becomes of that process is part of the answer.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guest import ExtraMissing, require
from guest.drivers import GuestFunction
from guest.image import Image, ImageError, open_image
from guest.machine import GuestFault, Machine
from guest.pci_io import PciIoInterface, xen_platform_device
from guest.usb_controllers import ehci_controller, xhci_controller
from guest.well_known import NAMES
from guest.world import FIRMWARE, LIBRARY, GuestWorld
from reference_impl.scenario import scenario
from reference_impl.trace import Kind, RecordTuple, StepBudgetExceeded
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import EVT_SIGNAL_EXIT_BOOT_SERVICES, Tpl
from reference_impl.uefi.driver_binding import binding_at
from reference_impl.uefi.pci_io import Bar, PciFunction
from reference_impl.uefi.runtime_services import SystemReset
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.world import SkippedError

LIBRARIES = (LIBRARY, "HiiDatabase", "EnglishDxe")
LIMIT_S = 60  # of processor time
PATIENCE_S = 900  # of the clock on the wall, for a machine that does much else

DEVICES = (
    ("USB UHCI controller", 0x8086, 0x7020, 0x0C0300),
    ("SATA AHCI controller", 0x8086, 0x2922, 0x010601),
    ("IDE controller", 0x8086, 0x7010, 0x010180),
    ("NVMe controller", 0x1B36, 0x0010, 0x010802),
    ("virtio network device", 0x1AF4, 0x1000, 0x020000),
    ("e1000 network device", 0x8086, 0x100E, 0x020000),
    ("VGA device", 0x1234, 0x1111, 0x030000),
)
"""PCI functions without behaviour: name, vendor, device, class."""

_EXIT_GROUPS = {
    guids.EVENT_GROUP_EXIT_BOOT_SERVICES: "EXIT_BOOT_SERVICES",
    guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES: "BEFORE_EXIT_BOOT_SERVICES",
    guids.EVENT_GROUP_EXIT_BOOT_SERVICES_FAILED: "EXIT_BOOT_SERVICES_FAILED",
}
_LOOKS = {
    "LocateProtocol": 0,
    "LocateDevicePath": 0,
    "LocateHandle": 1,
    "LocateHandleBuffer": 1,
}
_OPENS = {"OpenProtocol": 1, "HandleProtocol": 1}
_NOT_FOUND = (EfiStatus.NOT_FOUND, EfiStatus.UNSUPPORTED)
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(slots=True)
class Use:
    """A protocol that the image asked for: "looked up", "opened" or "notified", and whether it ever was there."""

    name: str
    guid: str
    how: list[str]
    found: bool


@dataclass(slots=True)
class ExitEvent:
    """An event of the image for the exit, which was there `after` the entry point or a Start."""

    group: str
    tpl: str
    function: str
    after: str


@dataclass(slots=True)
class Trial:
    """What an image did.

    starts        whether the entry point succeeded
    outcome       how it ended, in a sentence for people
    bindings      driver bindings that it installed
    controllers   those that its driver bindings support, and how Start ended there
    consumes      protocols that it asked for, in the order in which it did
    produces      names and GUIDs of protocols that it installed, in that order
    exit_events   in the order of their creation
    lacks         what it asked for in vain, in a phrase each
    """

    starts: bool
    outcome: str
    bindings: int = 0
    controllers: dict[str, str] | None = None
    consumes: list[Use] | None = None
    produces: dict[str, str] | None = None
    exit_events: list[ExitEvent] | None = None
    lacks: list[str] | None = None

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"  started here    {'yes' if self.starts else 'no'}: {self.outcome}"
        for name, end in (self.controllers or {}).items():
            yield f"    Start on the {name}: {end}"
        sections: tuple[tuple[str, list[str]], ...] = (
            ("consumes", [f"{_shown(use.name, use.guid)}  {_how(use)}" for use in self.consumes or ()]),
            ("produces", [_shown(name, guid) for guid, name in (self.produces or {}).items()]),
            ("exit events", [_event(event) for event in self.exit_events or ()]),
            ("lacks", self.lacks or []),
        )
        for title, entries in sections:
            if entries:
                yield f"  {title} when started"
                yield from (f"    {entry}" for entry in entries)


def _shown(name: str, guid: str) -> str:
    return f"{guid}  {name or '(unknown)'}"


def _how(use: Use) -> str:
    return f"{', '.join(use.how)}{'' if use.found else '; not here'}"


def _event(event: ExitEvent) -> str:
    return f"{event.group} at {event.tpl}: {event.function}, after {event.after}"


def try_image(spec: str, cache: Path | None = None) -> Trial:
    """Start the image that `spec` names, in a process of its own."""
    try:
        require("unicorn")
    except ExtraMissing as missing:
        return Trial(False, str(missing))
    arguments = [spec, *([] if cache is None else [str(cache)])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "guest.trial", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, f"it did not come back within {PATIENCE_S} seconds")
    if done.returncode == -signal.SIGXCPU:
        return Trial(False, f"it did not come back within {LIMIT_S} seconds of processor time")
    if done.returncode < 0:
        return Trial(False, f"the emulator crashed with it ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise RuntimeError(f"the trial of {spec} failed: {done.stderr.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(done.stdout)
    found["consumes"] = [Use(**use) for use in found["consumes"] or ()]
    found["exit_events"] = [ExitEvent(**event) for event in found["exit_events"] or ()]
    return Trial(**found)


class Bench:
    """The world of a trial, and what is seen in it."""

    def __init__(self, image: Image, libraries: dict[str, Image], machine: Machine) -> None:
        self._image = image
        self._world = GuestWorld(
            scenario(world="efi-image", design="shipped-block", devices=("block",)), libraries, machine
        )
        self._core = self._world.core
        self._uses: dict[str, Use] = {}
        self._produces: dict[str, str] = {}
        self._events: list[ExitEvent] = []
        self._strays: dict[str, None] = {}
        self._known_events = {event.id for event in self._core.events.live()}
        self._pci = PciIoInterface(self._world.thunks)

    def run(self) -> Trial:
        """Start the image, and its driver bindings on the controllers that they support."""
        world = self._world
        known = set(self._core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL))
        outcome = self._watch("the entry point", "its entry point", world.start_image, self._image)
        bindings = [
            handle for handle in self._core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL) if handle not in known
        ]
        trial = Trial(outcome is None, outcome or "its entry point answers EFI_SUCCESS", len(bindings), {})
        if outcome is None:
            trial.controllers = self._start(bindings)
        trial.consumes = list(self._uses.values())
        trial.produces = self._produces
        trial.exit_events = self._events
        trial.lacks = [
            *(f"protocol {_shown(use.name, use.guid)}" for use in trial.consumes if not use.found),
            *(f"service {service}" for agent, service in sorted(world.thunks.missed) if agent == self._image.name),
            *self._strays,
        ]
        return trial

    def _start(self, bindings: list[int]) -> dict[str, str]:
        """Ask each driver binding about each controller; how Start ended where one is supported."""
        ends: dict[str, str] = {}
        for name, find in self._controllers():
            controller = 0
            for binding in bindings:
                interface = self._core.handles.interface_of(binding, guids.DRIVER_BINDING_PROTOCOL)
                driver = binding_at(self._core, interface or 0)
                controller = controller or find()
                if driver is None or not controller:
                    continue
                if self._watch("", "Supported", driver.supported, controller, None):
                    continue
                end = self._watch(f"Start on the {name}", "Start", driver.start, controller, None)
                ends[name] = end or "EFI_SUCCESS"
                if end is not None and "EFI_" not in end:
                    return ends  # it ended in a fault, which leaves a machine that nothing can be said about
        return ends

    def _controllers(self) -> Iterator[tuple[str, Callable[[], int]]]:
        """Names of controllers, and what makes each when it is needed."""
        world = self._world
        yield "Xen platform device", lambda: self._pci_device(xen_platform_device())
        yield "Xen bus", lambda: world._controller
        yield "Xen block device", self._block_device
        yield "USB xHCI controller", lambda: self._pci_device(xhci_controller(3))
        yield "USB EHCI controller", lambda: self._pci_device(ehci_controller(4))
        for number, (name, vendor, device, class_code) in enumerate(DEVICES, 5):
            bars = {0: Bar(0xE000_0000 + (number << 20), 1 << 16), 4: Bar(0xC000 + (number << 8), 1 << 8, is_io=True)}
            function = PciFunction((0, 0, number, 0), vendor, device, class_code, bars)
            yield name, partial(self._pci_device, function)

    def _pci_device(self, function: PciFunction) -> int:
        core, memory = self._core, self._world.thunks.firmware
        device = function.location[2]
        path = bytes.fromhex("02010c00d041030a00000000") + bytes((1, 1, 6, 0, 0, device)) + bytes.fromhex("7fff0400")
        handle = core.handles.install(0, guids.DEVICE_PATH_PROTOCOL, core.place(memory.place(path), path))
        return core.handles.install(handle, guids.PCI_IO_PROTOCOL, self._pci.lay_out(function))

    def _block_device(self) -> int:
        """The first child of the model's bus, which starts unless the image manages the bus itself."""
        world = self._world
        with suppress(EfiError):
            world._connect("bus", "xenbus", False)
        with suppress(SkippedError):
            return world._handle("child-0")
        return 0

    def _watch(self, moment: str, what: str, act: Callable[..., object], *arguments: Any) -> str | None:
        """Let the image run, and note what it does; None for success, or how `what` ended."""
        records = self._core.trace.records
        first = len(records)
        end = None
        try:
            act(*arguments)
        except ImageError as error:
            end = f"it cannot be loaded here: {error}"
        except EfiError as refusal:
            end = f"{what} answers {refusal.status}"
        except GuestFault as fault:
            frames = " < ".join(self._world.images.backtrace(fault))
            where = f" of {fault.address:#x}" if fault.kind in ("read", "write", "fetch") else ""
            detail = f" ({fault.detail})" if fault.detail else ""
            end = f"{what} ends in a fault: {fault.kind}{where}{detail} at {frames}"
        except SystemReset:
            end = f"{what} resets the system"
        except StepBudgetExceeded:
            end = f"{what} does not end: it waits, polls or asks for ever"
        for record in records[first:]:
            self._note(record)
        for event in self._core.events.live():
            group = _EXIT_GROUPS.get(event.group)
            if event.event_type == EVT_SIGNAL_EXIT_BOOT_SERVICES:
                group = "EXIT_BOOT_SERVICES"
            if event.id in self._known_events:
                continue
            self._known_events.add(event.id)
            if group is not None and moment and isinstance(event.function, GuestFunction):
                function = event.function.__name__
                self._events.append(ExitEvent(group, f"TPL_{Tpl(event.tpl).name}", function, moment))
        return end

    def _note(self, record: RecordTuple) -> None:
        kind, agent, _, _, _, name, arguments, status, _ = record
        if agent != self._image.name:
            return
        if kind == Kind.STRAY:
            self._strays[f"I/O port {arguments[0]:#x} (at {arguments[1]})"] = None
        if kind != Kind.SERVICE:
            return
        if name in _LOOKS:
            self._use(arguments[_LOOKS[name]], "looked up", status)
        elif name in _OPENS:
            self._use(arguments[_OPENS[name]], "opened", status)
        elif name == "RegisterProtocolNotify":
            self._use(arguments[0], "notified", EfiStatus.SUCCESS)
        elif name in ("InstallProtocolInterface", "ReinstallProtocolInterface"):
            self._produce(arguments[1], status)
        elif name == "InstallMultipleProtocolInterfaces":
            for protocol, _interface in arguments[1:]:
                self._produce(protocol, status)

    def _use(self, guid: str, how: str, status: object) -> None:
        if not guid:
            return  # all handles, whatever they have
        use = self._uses.setdefault(guid, Use(NAMES.get(guid, ""), guid, [], False))
        if how not in use.how:
            use.how.append(how)
        use.found = use.found or status not in _NOT_FOUND

    def _produce(self, guid: str, status: object) -> None:
        if status == EfiStatus.SUCCESS:
            self._produces[guid] = NAMES.get(guid, "")


def _libraries(image: Image, cache: Path | None) -> dict[str, Image]:
    """What is there of the images that others need, but for the image itself."""
    found = {}
    for name in LIBRARIES:
        if name != image.name:
            try:
                found["" if name == LIBRARY else name] = open_image(f"{FIRMWARE}:{name}", cache)
            except (ImageError, ExtraMissing):
                continue
    return found


def _main(arguments: list[str]) -> None:
    """In the process of the trial: start the image, and print what was seen as JSON."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 5))
    cache = Path(arguments[1]) if len(arguments) > 1 else None
    image = open_image(arguments[0], cache)
    machine = Machine(counting=True)
    trial = Bench(image, _libraries(image, cache), machine).run()
    machine.close()
    print(json.dumps(asdict(trial)))


if __name__ == "__main__":
    _main(sys.argv[1:])
