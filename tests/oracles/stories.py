"""Traces made by hand: what a run would have recorded, told in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from hypothesis import strategies as st

from oracles import judge
from oracles.reading import Reading
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import (
    BY_CHILD_CONTROLLER,
    BY_DRIVER,
    EVT_NOTIFY_SIGNAL,
    EVT_SIGNAL_EXIT_BOOT_SERVICES,
    Tpl,
)
from reference_impl.uefi.status import EfiStatus

BUS, BLOCK, LOADER = "XenBusDxe", "XenPvBlkDxe", "os-loader"
CONTROLLER, CHILD, SECOND_CHILD = 2, 8, 9
BINDING = 3
POOL, PAGES, EVENT, PORT = 0x1_0000_0000, 0x1E7F_D000, 0xE0000001, 5
DISK, SECOND_DISK = "device/vbd/0", "device/vbd/1"
FOR_CHILD = (CONTROLLER, guids.XENIO_PROTOCOL, BINDING, CHILD, BY_CHILD_CONTROLLER)
"""Arguments of an OpenProtocol that records a child of the bus."""

CALLS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "AllocatePool": ((4, 64), POOL),
    "FreePool": ((POOL,), None),
    "AllocatePages": ((0, 4, 2, 0), PAGES),
    "FreePages": ((PAGES, 2), None),
    "GetMemoryMap": ((4096,), ((), 7, 48)),
    "CreateEvent": ((EVT_SIGNAL_EXIT_BOOT_SERVICES, 8, "notify", POOL), EVENT),
    "CreateEventEx": ((EVT_NOTIFY_SIGNAL, 8, "notify", POOL, guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES), EVENT),
    "CloseEvent": ((EVENT,), None),
    "SignalEvent": ((EVENT,), None),
    "CheckEvent": ((EVENT,), None),
    "SetTimer": ((EVENT, 2, 100), None),
    "WaitForEvent": (((EVENT,),), 0),
    "RegisterProtocolNotify": ((guids.XENIO_PROTOCOL, EVENT), 0x77),
    "InstallProtocolInterface": ((CHILD, guids.BLOCK_IO_PROTOCOL, 0, POOL), CHILD),
    "InstallMultipleProtocolInterfaces": ((0, (guids.DEVICE_PATH_PROTOCOL, 1), (guids.XENBUS_PROTOCOL, 2)), CHILD),
    "UninstallProtocolInterface": ((CHILD, guids.BLOCK_IO_PROTOCOL, POOL), None),
    "UninstallMultipleProtocolInterfaces": ((CHILD, (guids.DEVICE_PATH_PROTOCOL, 1), (guids.XENBUS_PROTOCOL, 2)), None),
    "ReinstallProtocolInterface": ((CHILD, guids.BLOCK_IO_PROTOCOL, POOL, POOL + 16), None),
    "OpenProtocol": ((CONTROLLER, guids.XENIO_PROTOCOL, BINDING, CONTROLLER, BY_DRIVER), 0x1000),
    "CloseProtocol": ((CONTROLLER, guids.XENIO_PROTOCOL, BINDING, CONTROLLER), None),
    "OpenProtocolInformation": ((CONTROLLER, guids.XENIO_PROTOCOL), (POOL, ())),
    "HandleProtocol": ((CONTROLLER, guids.XENIO_PROTOCOL), 0x1000),
    "LocateProtocol": ((guids.XENIO_PROTOCOL,), 0x1000),
    "LocateHandleBuffer": ((2, guids.XENIO_PROTOCOL, 0), (POOL, (CONTROLLER,))),
    "ProtocolsPerHandle": ((CONTROLLER,), (POOL, ())),
    "ConnectController": ((CONTROLLER, (), None, True), None),
    "DisconnectController": ((CONTROLLER, 0, 0), None),
    "LoadImage": (("Other",), 12),
    "StartImage": ((12,), None),
    "UnloadImage": ((12,), None),
    "InstallConfigurationTable": ((guids.EVENT_GROUP_EXIT_BOOT_SERVICES, POOL), None),
    "Stall": ((100,), None),
    "RaiseTPL": ((16,), 4),
    "RestoreTPL": ((4,), None),
    "ExitBootServices": ((0, 7), None),
    "EVTCHNOP_alloc_unbound": ((0,), PORT),
    "EVTCHNOP_close": ((PORT,), None),
    "XENMEM_add_to_physmap": ((0, 0, PAGES >> 12), None),
    "XENMEM_remove_from_physmap": ((PAGES >> 12,), None),
    "WATCH": (("backend/state", b"token\0"), None),
    "UNWATCH": (("backend/state", b"token\0"), None),
    "WRITE": (("device/vbd/0/state", b"5"), None),
}
"""Name of a call → what stories pass and what they get where nothing is said: one controller, one event, one buffer …"""


class Nesting:
    """What `with` takes to put records inside the one that was just made."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __enter__(self) -> None:
        self.trace.depth += 1

    def __exit__(self, *_: object) -> None:
        self.trace.depth -= 1


class Story:
    """A trace that is being told. Every method that adds a record gives something to nest the next ones in."""

    def __init__(self) -> None:
        self.trace = Trace()

    def add(
        self,
        kind: Kind,
        agent: str,
        name: str,
        arguments: tuple[Any, ...] = (),
        status: Any = None,
        value: Any = None,
    ) -> Nesting:
        """One record of any kind."""
        self.trace.add(kind, agent, name, arguments, status, value)
        return Nesting(self.trace)

    def service(
        self,
        name: str,
        agent: str = BUS,
        status: EfiStatus | None = EfiStatus.SUCCESS,
        *arguments: Any,
        value: Any = None,
    ) -> Nesting:
        """A boot service is called. Where nothing is said, it is about the one thing of its kind, see `CALLS`."""
        usual, answer = CALLS[name]
        if value is None and status == EfiStatus.SUCCESS:
            value = answer
        return self.add(Kind.SERVICE, agent, name, arguments or usual, status, value)

    def hypercall(self, name: str, agent: str = BUS, status: int = 0, *arguments: Any, value: Any = None) -> Nesting:
        """The hypervisor is called."""
        usual, answer = CALLS[name]
        if value is None and status == 0:
            value = answer
        return self.add(Kind.HYPERCALL, agent, name, arguments or usual, status, value)

    def xenstore(self, name: str, status: str = "OK", agent: str = BUS, *arguments: Any) -> Nesting:
        """xenstored answers a request."""
        return self.add(Kind.XENSTORE, agent, name, arguments or CALLS[name][0], status)

    def injected(self, name: str, agent: str = BUS) -> Nesting:
        """An armed failure fires."""
        return self.add(Kind.INJECTED, agent, name, (), EfiStatus.INVALID_PARAMETER)

    def misuse(self, name: str, agent: str = BUS, owner: str = BUS, address: int = POOL) -> Nesting:
        """The memory model sees something that is wrong."""
        return self.add(Kind.MEMORY, agent, name, (address, owner))

    def stuck(self, name: str, agent: str = BUS, *arguments: Any) -> Nesting:
        """The run ends here."""
        return self.add(Kind.STUCK, agent, name, arguments)

    def operation(self, name: str = "connect") -> Nesting:
        """The scenario goes on."""
        return self.add(Kind.OPERATION, "scenario", name)

    def entry(
        self,
        name: str,
        agent: str = BUS,
        status: EfiStatus | None = EfiStatus.SUCCESS,
        *arguments: Any,
        returned: int | None = None,
    ) -> Nesting:
        """Driver code is entered; Supported, Start and Stop for a controller, and Stop for no children."""
        given = {
            "Supported": (CONTROLLER, None),
            "Start": (CONTROLLER, None),
            "Stop": (CONTROLLER, ()),
            "Notify": (EVENT, ""),
        }
        return self.add(Kind.ENTRY, agent, name, arguments or given.get(name, ()), status, returned)

    def core(self, deed: str, service: str, agent: str = BUS) -> Nesting:
        """The core allocates or frees for itself inside `service`, which `agent` called."""
        return self.add(Kind.CORE_MEMORY, agent, service, (deed, 48 if deed == "allocate" else 0), None, 0x5000)

    def connection(self, resource: str, generation: int, agent: str = BUS) -> Nesting:
        """A resource of the connection is taken into use."""
        return self.add(Kind.CONNECTION, agent, resource, (generation,))

    def reset(self, resource: str, generation: int, agent: str = BUS) -> Nesting:
        """A resource of the connection is reset."""
        return self.add(Kind.RESET, agent, resource, (generation,), None, "cleared")

    def reference(self, name: str, count: int, device: str = DISK, *arguments: Any) -> Nesting:
        """The bus counts a reference: "Add" or "Remove"."""
        return self.add(Kind.REFERENCE, BUS, f"{name}Reference", (device, *arguments), None, count)

    def frontend(self, old: int, new: int, device: str = DISK) -> Nesting:
        """The front end of a device goes from one state to another."""
        return self.add(Kind.XENBUS_STATE, "frontend", device, (old, new))

    def take_over(self, name: str, status: str = "OK", responsible: str = "", *arguments: Any) -> Nesting:
        """One step of the operating system."""
        return self.add(Kind.TAKE_OVER, "os", name, arguments, status, responsible)

    @contextmanager
    def notification(
        self, agent: str = BUS, tpl: int = Tpl.CALLBACK, event: int = EVENT, group: str = ""
    ) -> Iterator[None]:
        """A notification function runs."""
        before, self.trace.tpl = self.trace.tpl, int(tpl)
        with self.entry("Notify", agent, EfiStatus.SUCCESS, event, group):
            yield
        self.trace.tpl = before

    @contextmanager
    def at(self, tpl: int) -> Iterator[None]:
        """What follows happens at another TPL."""
        before, self.trace.tpl = self.trace.tpl, int(tpl)
        yield
        self.trace.tpl = before

    @contextmanager
    def before_group(self) -> Iterator[None]:
        """The loader calls ExitBootServices, and the BEFORE group is notified."""
        with self.service("ExitBootServices", LOADER):
            self.trace.phase = int(Phase.BEFORE)
            yield
            self.trace.phase = int(Phase.CHECK)

    @contextmanager
    def exit(self) -> Iterator[None]:
        """The loader calls ExitBootServices with the right key: EXIT group, then the runtime phase."""
        with self.service("ExitBootServices", LOADER):
            self.trace.phase = int(Phase.EXIT)
            self.add(Kind.EXIT, LOADER, "exit-group")
            yield
            self.trace.phase = int(Phase.RUNTIME)
            self.add(Kind.EXIT, LOADER, "runtime")

    def failed_exit(self) -> None:
        """The loader calls ExitBootServices with a stale key."""
        with self.service("ExitBootServices", LOADER, EfiStatus.INVALID_PARAMETER):
            self.trace.phase = int(Phase.FAILED)
            self.add(Kind.EXIT, LOADER, "failed-group")
        self.trace.phase = int(Phase.RETRY)

    @property
    def reading(self) -> Reading:
        """What oracles are given."""
        return Reading(self.trace)

    def signatures(self) -> list[str]:
        """What all oracles together say about it."""
        return [finding.signature for finding in judge(self.trace)]


_AGENTS = st.sampled_from((BUS, BLOCK, LOADER, "firmware", "os", "third-party", ""))
_CALLS = st.sampled_from(
    [name for name in CALLS if not name.startswith(("EVTCHNOP", "XENMEM", "WATCH", "UNWATCH", "WRITE"))]
)
_STATUSES = st.sampled_from((EfiStatus.SUCCESS, EfiStatus.OUT_OF_RESOURCES, EfiStatus.NOT_FOUND))
_HANDLES = st.integers(2, 5)


@st.composite
def _happenings(draw: Any) -> tuple[Any, ...]:
    """One record but for where it stands: kind, name, arguments, status, value. Numbers come from small ranges."""
    number = draw(st.integers(0, 2))
    status = draw(_STATUSES)
    match draw(
        st.sampled_from(("call", "call", "core", "entry", "connection", "take-over", "held", "reference", "misuse"))
    ):
        case "call":
            name = draw(_CALLS)
            arguments, value = CALLS[name]
            return Kind.SERVICE, name, arguments, status, None if status else value
        case "core":
            deed = draw(st.sampled_from(("allocate", "free")))
            return Kind.CORE_MEMORY, draw(_CALLS), (deed, number), None, number
        case "entry":
            name = draw(st.sampled_from(("Supported", "Start", "Stop", "Notify", "Unload")))
            rest = {"Stop": draw(st.sampled_from(((), (CHILD,)))), "Notify": ""}.get(name)
            return Kind.ENTRY, name, (draw(_HANDLES), rest), status, draw(st.sampled_from((None, None, 16)))
        case "connection":
            resource = draw(st.sampled_from(("ring", "grant-table")))
            return draw(st.sampled_from((Kind.CONNECTION, Kind.RESET))), resource, (number,), None, None
        case "take-over":
            name = draw(st.sampled_from(("memory-map", "store", "device/vbd/0", "device/vbd/1", "device/vif/0")))
            return Kind.TAKE_OVER, name, (), draw(st.sampled_from(("OK", "still in use"))), ""
        case "held":
            name = draw(st.sampled_from(("grant-table", "event-channel")))
            return Kind.TAKE_OVER, name, (number, draw(st.sampled_from((DISK, "device/vif/0")))), "still in use", ""
        case "reference":
            name = draw(st.sampled_from(("AddReference", "RemoveReference")))
            return Kind.REFERENCE, name, (draw(st.sampled_from((DISK, SECOND_DISK))),), None, number
        case _:
            name = draw(st.sampled_from(("double-free", "foreign-free", "use-after-free", "overrun")))
            return Kind.MEMORY, name, (POOL, draw(st.sampled_from((BUS, BLOCK, LOADER)))), None, None


@st.composite
def traces(draw: Any, last_phase: Phase = Phase.RUNTIME) -> Trace:
    """Any trace: phases come in their order up to `last_phase`; depth grows by at most one from record to record."""
    happens = st.tuples(
        st.integers(0, last_phase), _AGENTS, _happenings(), st.integers(0, 4), st.sampled_from((4, 8, 12, 16, 31))
    )
    trace = Trace()
    for phase, agent, (kind, *rest), depth, tpl in sorted(draw(st.lists(happens, max_size=25)), key=itemgetter(0)):
        if phase == Phase.RUNTIME != trace.phase:
            trace.phase = phase
            trace.add(Kind.EXIT, LOADER, "runtime")
        trace.phase = phase
        trace.depth = min(depth, trace.depth + 1)
        trace.tpl = tpl
        trace.add(kind, agent, *rest)
    return trace
