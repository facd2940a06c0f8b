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
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus

BUS, BLOCK, LOADER = "XenBusDxe", "XenPvBlkDxe", "os-loader"
CONTROLLER = 2
DISK, SECOND_DISK = "device/vbd/0", "device/vbd/1"


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
        self, name: str, agent: str = BUS, status: EfiStatus | None = EfiStatus.SUCCESS, *arguments: Any
    ) -> Nesting:
        """A boot service is called."""
        return self.add(Kind.SERVICE, agent, name, arguments, status)

    def entry(
        self, name: str, agent: str = BUS, status: EfiStatus | None = EfiStatus.SUCCESS, *arguments: Any
    ) -> Nesting:
        """Driver code is entered; Supported, Start and Stop for a controller, and Stop for no children."""
        given = {"Supported": (CONTROLLER, None), "Start": (CONTROLLER, None), "Stop": (CONTROLLER, ())}
        return self.add(Kind.ENTRY, agent, name, arguments or given.get(name, ()), status)

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
    def notification(self, agent: str = BUS, tpl: int = Tpl.CALLBACK) -> Iterator[None]:
        """A notification function runs."""
        before, self.trace.tpl = self.trace.tpl, int(tpl)
        with self.entry("Notify", agent):
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


_AGENTS = st.sampled_from((BUS, BLOCK, LOADER, "firmware", "os", ""))
_SERVICES = st.sampled_from(("AllocatePool", "FreePages", "CloseEvent", "DisconnectController", "OpenProtocol"))
_STATUSES = st.sampled_from((EfiStatus.SUCCESS, EfiStatus.OUT_OF_RESOURCES, EfiStatus.NOT_FOUND))
_ADDRESSES = st.integers(0, 1 << 48)
_EVENTS = st.one_of(
    st.tuples(st.just(Kind.SERVICE), _SERVICES, st.tuples(_ADDRESSES), _STATUSES),
    st.tuples(st.just(Kind.CORE_MEMORY), _SERVICES, st.tuples(st.sampled_from(("allocate", "free")), _ADDRESSES)),
    st.tuples(st.just(Kind.ENTRY), st.sampled_from(("Start", "Stop", "Notify")), st.tuples(_ADDRESSES)),
    st.tuples(
        st.sampled_from((Kind.CONNECTION, Kind.RESET)),
        st.sampled_from(("ring", "grant-table")),
        st.tuples(st.integers(0, 2)),
    ),
    st.tuples(
        st.just(Kind.TAKE_OVER),
        st.sampled_from(("memory-map", "store", "device/vbd/0", "device/vbd/1", "device/vif/0")),
        st.just(()),
        st.sampled_from(("OK", "still in use")),
    ),
    st.tuples(
        st.just(Kind.TAKE_OVER),
        st.sampled_from(("grant-table", "event-channel")),
        st.tuples(_ADDRESSES, st.sampled_from(("device/vbd/0", "device/vif/0"))),
        st.sampled_from(("still in use",)),
    ),
)


@st.composite
def traces(draw: Any, last_phase: Phase = Phase.RUNTIME) -> Trace:
    """Any trace: phases come in their order up to `last_phase`; depth grows by at most one from record to record."""
    happens = st.tuples(st.integers(0, last_phase), _AGENTS, _EVENTS, st.integers(0, 4), st.integers(4, 31))
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
