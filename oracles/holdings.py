"""What drivers take, what they give back, and what outlives the code that should have given it back.

Several families ask the same about different things: what did this Start() take, and was it still there when the Start()
had failed, or the Stop() that belongs to it had succeeded (UEFI 2.10 §11.1)? Here is the one book in which everything
that can be taken is entered:

    pool, pages      memory, also the buffers that a service gives its caller           by address
    event            an event                                                           by its number
    open             a protocol that is open BY_DRIVER, BY_CHILD_CONTROLLER or EXCLUSIVE; the specification lets the other
                     opens stand                                                        by handle, protocol, agent, controller
    interface        a protocol that is installed                                       by handle and protocol
    grant            a page that a peer may use                                         by reference
    event-channel    a port                                                             by port
    physmap          a place at which the hypervisor shows a page                       by page number
    watch            a watch in xenstore                                                by path and token
    device           a front end that is Initialised or Connected                       by the device's path

Who has to give it back:

* What is taken inside of a Supported() or Start() belongs to that entry, for the driver whose code made the call.
* Memory, events and protocols that *another driver* takes there (the bus, in a member function that the device's Start()
  calls) are that driver's own. They are due when it manages nothing any more. So is what a driver takes anywhere else.
* An image that is no driver (DevicePathDxe) takes memory for its caller.
* What is taken in the entry point is the image's, and is due when Unload() has succeeded.

An attempt to give something back counts as done, if it names the right thing: where the environment lets cleanup fail,
a driver can do no more. Only Uninstall must succeed, since its refusal says that somebody still uses the interface.

Nothing is judged in the name of an environment: neither what it takes, nor what a driver whose image is torn out leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from oracles.reading import PLATFORM_AGENTS, Entry, Reading, circumstances, injected
from reference_impl.trace import Kind, RecordTuple
from reference_impl.uefi.definitions import BY_CHILD_CONTROLLER, BY_DRIVER, EXCLUSIVE, PAGE_SIZE_BYTES

LENT_BY_THE_PLATFORM = frozenset({"grant", "event-channel", "physmap", "watch", "device"})
"""What a device driver takes by way of the bus's protocol: it belongs to the driver whose code called, not to the bus."""

TEAR_OUT = "tear-out"
"""The operation that unloads a driver as it is."""

STORE = "store"
"""The operation after which xenstored answers wrongly or not at all: what is given back by asking it may stay."""

_BY_REQUEST = frozenset({"watch", "device"})
_OF_AN_IMAGE = frozenset({"pool", "pages", "event", "interface"})
LASTING_OPENS = BY_CHILD_CONTROLLER | BY_DRIVER | EXCLUSIVE
_XENBUS_STATE, _RESET, _OPERATION = int(Kind.XENBUS_STATE), int(Kind.RESET), int(Kind.OPERATION)
_UP = (3, 4)  # Initialised, Connected


class Holding(NamedTuple):
    """Something that was taken and not given back yet.

    resource  which of the sorts above
    key       which one of them
    agent     who made the call
    step      of the call
    entry     the innermost entry that it was made in, None outside of driver code
    size      pages of "pages", attributes of "open"; otherwise 0
    """

    resource: str
    key: Any
    agent: str
    step: int
    entry: Entry | None
    size: int = 0


class Kept(NamedTuple):
    """A holding that was there although `entry` is over: a Supported(), a Start() that failed, a Stop() or an Unload()."""

    holding: Holding
    entry: Entry

    @property
    def agent(self) -> str:
        """Whose promise broke."""
        return self.entry.agent

    def subject(self, what: str) -> str:
        """What a finding is about: the entry that is over, and what was taken."""
        return f"{self.entry.name}-{what}"

    def story(self, reading: Reading) -> str:
        """What happened, as a sentence."""
        holding, entry = self
        records = reading.records
        taken = f"{holding.agent} called {records[holding.step][5]} in step {holding.step}"
        if holding.resource == "device":
            taken = f"The front end of {holding.key} came up in step {holding.step}"
        return f"{taken}{circumstances(records, holding.step)}; {entry.ending}, and it was not given back."


class Book:
    """The holdings of one run.

    kept       what was not given back, in the order in which that showed
    lies       Stop() that answered success, although everything by which the driver manages the controller is still open
    orphans    opens BY_CHILD_CONTROLLER for a child handle that is gone, each with the step of the uninstallation
    gone       handle whose last protocol was uninstalled → the step of that
    held       steps of uninstallations of what is installed, as far as the trace tells: if refused, somebody held it
    starts     each Start() that succeeded, with what it took
    children   each Stop() of children that succeeded, with those that are still there, and others that went with them
    unloads    each Unload() that succeeded, of an image that was not torn out
    """

    __slots__ = (
        "_drivers",
        "_handles",
        "_latest",
        "_let_go",
        "_live",
        "_managing",
        "_operation",
        "_reading",
        "_store_answers",
        "_went",
        "children",
        "gone",
        "held",
        "kept",
        "lies",
        "orphans",
        "starts",
        "unloads",
    )

    def __init__(self, reading: Reading) -> None:
        self.kept: list[Kept] = []
        self.lies: list[Entry] = []
        self.orphans: list[tuple[Holding, int]] = []
        self.gone: dict[int, int] = {}
        self.held: set[int] = set()
        self.starts: list[tuple[Entry, list[Holding]]] = []
        self.children: list[tuple[Entry, list[int], list[int]]] = []
        self.unloads: list[Entry] = []
        self._reading = reading
        self._went: list[Holding] = []  # opens BY_CHILD_CONTROLLER that were closed, each in the entry of that
        self._live: dict[tuple[str, Any], Holding] = {}
        self._managing: dict[tuple[str, int], int] = {}  # (agent, controller) → step of the Start()
        self._let_go: dict[
            tuple[str, int], int
        ] = {}  # (agent, controller) → when it last closed a BY_DRIVER open of it
        self._drivers: set[str] = set()
        self._operation = ""
        self._store_answers = True
        self._latest = -1  # when something was taken last
        self._handles: dict[int, int] = {}  # handle that was made in the run → how many protocols it has
        records = reading.records
        for place in reading.course:
            if isinstance(place, Entry):
                if place.agent not in PLATFORM_AGENTS:
                    self._over(place)
                continue
            record = records[place]
            act = _ACTS.get(record[5])
            if act is not None:
                if record[1] not in PLATFORM_AGENTS:
                    act(self, place, record)
            elif record[0] == _XENBUS_STATE:
                self._state(place, record)
            elif record[0] == _RESET:
                self._reset(record[5])
            elif record[0] == _OPERATION:
                self._operation = record[5]
                self._store_answers &= record[5] != STORE

    # ---- what is taken and given back -----------------------------------------------------------------------------

    def _take(self, resource: str, key: Any, step: int, size: int = 0) -> None:
        agent, entry = self._reading.records[step][1], self._reading.around[step]
        self._live.pop((resource, key), None)  # the book is in the order of steps
        self._latest = step
        self._live[resource, key] = Holding(resource, key, agent, step, entry, size)

    def _give(self, resource: str, key: Any) -> None:
        self._live.pop((resource, key), None)

    def _pool(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("pool", record[8], step)

    def _buffer(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("pool", record[8][0], step)

    def _free_pool(self, step: int, record: RecordTuple) -> None:
        self._give("pool", record[6][0])

    def _pages(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("pages", record[8], step, record[6][2])

    def _free_pages(self, step: int, record: RecordTuple) -> None:
        """Pages can be given back in parts: what was taken together is gone with its last page."""
        start, count = record[6][:2]
        for key in [key for key in self._live if key[0] == "pages" and key[1] <= start]:
            holding = self._live[key]
            if start < holding.key + holding.size * PAGE_SIZE_BYTES:
                self._live[key] = holding._replace(size=holding.size - count)
                if holding.size <= count:
                    del self._live[key]

    def _event(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("event", record[8], step)

    def _close_event(self, step: int, record: RecordTuple) -> None:
        self._give("event", record[6][0])

    def _open(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0 and record[6][4] & LASTING_OPENS:
            self._take("open", record[6][:4], step, record[6][4])

    def _close(self, step: int, record: RecordTuple) -> None:
        holding = self._live.pop(("open", record[6]), None)
        if holding is not None and holding.size & BY_DRIVER:
            self._let_go[holding.agent, holding.key[3]] = step
        if holding is not None and holding.size & BY_CHILD_CONTROLLER:
            self._went.append(holding._replace(entry=self._reading.around[step]))

    def _install(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._installed(step, record[8], (record[6][1],))

    def _install_multiple(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._installed(step, record[8], tuple(protocol for protocol, _ in record[6][1:]))

    def _installed(self, step: int, handle: int, protocols: tuple[str, ...]) -> None:
        if not self._reading.records[step][6][0]:
            self._handles[handle] = 0
        for protocol in protocols:
            self._take("interface", (handle, protocol), step)
        if handle in self._handles:
            self._handles[handle] += len(protocols)

    def _uninstall(self, step: int, record: RecordTuple) -> None:
        self._uninstalled(step, record, (record[6][1],))

    def _uninstall_multiple(self, step: int, record: RecordTuple) -> None:
        self._uninstalled(step, record, tuple(protocol for protocol, _ in record[6][1:]))

    def _uninstalled(self, step: int, record: RecordTuple, protocols: tuple[str, ...]) -> None:
        handle = record[6][0]
        made_here = handle in self._handles or handle in self.gone
        if not made_here or all(("interface", (handle, protocol)) in self._live for protocol in protocols):
            self.held.add(step)
        if record[7] == 0 or injected(self._reading.records, step):
            for protocol in protocols:
                self._give("interface", (handle, protocol))
        if record[7] == 0 and handle in self._handles:
            self._handles[handle] -= len(protocols)
            if self._handles[handle] <= 0:
                del self._handles[handle]
                self._gone(step, handle)

    def _gone(self, step: int, handle: int) -> None:
        """A handle is gone: whoever has a protocol open for it as a child cannot close that any more."""
        self.gone[handle] = step
        for key, holding in list(self._live.items()):
            if holding.resource == "open" and holding.key[3] == handle and holding.size & BY_CHILD_CONTROLLER:
                del self._live[key]
                self.orphans.append((holding, step))

    def _port(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("event-channel", record[8], step)

    def _close_port(self, step: int, record: RecordTuple) -> None:
        self._give("event-channel", record[6][0])

    def _place(self, step: int, record: RecordTuple) -> None:
        if record[7] == 0:
            self._take("physmap", record[6][2], step)

    def _displace(self, step: int, record: RecordTuple) -> None:
        self._give("physmap", record[6][0])

    def _grant(self, step: int, record: RecordTuple) -> None:
        if record[7] == "OK":
            self._take("grant", record[6][0], step)

    def _end_grant(self, step: int, record: RecordTuple) -> None:
        self._give("grant", record[6][0])

    def _watch(self, step: int, record: RecordTuple) -> None:
        if record[7] == "OK":
            self._take("watch", record[6], step)

    def _unwatch(self, step: int, record: RecordTuple) -> None:
        self._give("watch", record[6])

    def _write(self, step: int, record: RecordTuple) -> None:
        """A front end that cannot write its closing state has done what it can."""
        if record[7] != "OK" and record[6][0].endswith("/state") and record[6][-1] not in (b"3", b"4"):
            path = record[6][0]
            self._give("device", path[path.find("device/") : -len("/state")])

    def _state(self, step: int, record: RecordTuple) -> None:
        if record[6][1] not in _UP:
            self._give("device", record[5])
        elif ("device", record[5]) not in self._live:
            self._take("device", record[5], step)

    def _reset(self, name: str) -> None:
        """The reset of the ring ends all watches, that of the grant table all grants."""
        resource = "watch" if name == "ring" else "grant"
        for key in [key for key in self._live if key[0] == resource]:
            del self._live[key]

    # ---- when it is due ---------------------------------------------------------------------------------------------

    def _over(self, entry: Entry) -> None:
        name, agent = entry.name, entry.agent
        if name == "Supported":
            self._drivers.add(agent)
            if self._latest > entry.step:
                self._undone(entry)
        elif name in ("Start", "EntryPoint"):
            if entry.failed:
                self._undone(entry)
            elif name == "Start" and entry.status == 0:
                self._managing[agent, entry.controller] = entry.step
                self.starts.append((entry, self._taken_in(entry)))
        elif entry.ends_managing:
            self._stopped(entry)
        elif name == "Stop" and entry.status == 0:
            self._children_stopped(entry)
        elif name == "Unload" and entry.status == 0 and self._operation != TEAR_OUT:
            self.unloads.append(entry)
            self._due(
                entry, [each for each in self._live.values() if each.agent == agent and each.resource in _OF_AN_IMAGE]
            )

    def _undone(self, entry: Entry) -> None:
        """A Supported(), or a Start() or entry point that failed: nothing of what was taken inside may be there."""
        self._due(entry, self._taken_in(entry))

    def _taken_in(self, entry: Entry) -> list[Holding]:
        """What was taken inside of an entry that is just over, and belongs to it."""
        taken = []
        for holding in reversed(self._live.values()):
            if holding.step < entry.step:
                break
            if holding.entry is entry and (holding.agent == entry.agent or self._owner(holding) == entry.agent):
                taken.append(holding)
        taken.reverse()
        return taken

    def _children_stopped(self, entry: Entry) -> None:
        listed = entry.arguments[1]
        left = {
            each.key[3]: None
            for each in self._live.values()
            if each.resource == "open"
            and each.size & BY_CHILD_CONTROLLER
            and each.key[0] == entry.controller
            and each.key[3] in listed
        }
        others = [each.key[3] for each in self._went if each.entry is entry and each.key[3] not in listed]
        self.children.append((entry, list(left), others))

    def _stopped(self, entry: Entry) -> None:
        agent, controller = entry.agent, entry.controller
        before = [each for each in self._live.values() if each.step < entry.step]
        managed = any(
            each.resource == "open" and each.size & BY_DRIVER and each.key[3] == controller and each.agent == agent
            for each in before
        )
        if managed and self._let_go.get((agent, controller), -1) < entry.step:
            self.lies.append(entry)
            return
        if (started := self._managing.get((agent, controller))) is not None and started < entry.step:
            del self._managing[agent, controller]
        idle = all(manager != agent for manager, _ in self._managing)
        running = set(map(id, entry.outwards()))  # what code that goes on has taken, it may still give back
        self._due(
            entry,
            [
                each
                for each in before
                if self._owner(each) == agent
                and id(each.entry) not in running
                and (idle or _taken_by_start_of(each, controller))
            ],
        )

    def _owner(self, holding: Holding) -> str:
        """The driver that has to give it back."""
        entry = holding.entry
        if entry is None or entry.agent == holding.agent:
            return holding.agent
        if holding.resource in LENT_BY_THE_PLATFORM or holding.agent not in self._drivers:
            return entry.agent
        return holding.agent

    def _due(self, entry: Entry, holdings: list[Holding]) -> None:
        for holding in holdings:
            if holding.resource in _BY_REQUEST and not self._store_answers:
                continue
            if holding.entry is None or holding.entry.name != "EntryPoint" or entry.name in ("EntryPoint", "Unload"):
                del self._live[holding.resource, holding.key]
                self.kept.append(Kept(holding, entry))


def _taken_by_start_of(holding: Holding, controller: int) -> bool:
    entry = holding.entry
    return entry is not None and entry.name == "Start" and entry.controller == controller


_Act = Callable[[Book, int, RecordTuple], None]
_ACTS: dict[str, _Act] = {
    "AllocatePool": Book._pool,
    "LocateHandleBuffer": Book._buffer,
    "OpenProtocolInformation": Book._buffer,
    "ProtocolsPerHandle": Book._buffer,
    "FreePool": Book._free_pool,
    "AllocatePages": Book._pages,
    "FreePages": Book._free_pages,
    "CreateEvent": Book._event,
    "CreateEventEx": Book._event,
    "CloseEvent": Book._close_event,
    "OpenProtocol": Book._open,
    "CloseProtocol": Book._close,
    "InstallProtocolInterface": Book._install,
    "InstallMultipleProtocolInterfaces": Book._install_multiple,
    "UninstallProtocolInterface": Book._uninstall,
    "UninstallMultipleProtocolInterfaces": Book._uninstall_multiple,
    "EVTCHNOP_alloc_unbound": Book._port,
    "EVTCHNOP_close": Book._close_port,
    "XENMEM_add_to_physmap": Book._place,
    "XENMEM_remove_from_physmap": Book._displace,
    "grant": Book._grant,
    "end": Book._end_grant,
    "WATCH": Book._watch,
    "UNWATCH": Book._unwatch,
    "WRITE": Book._write,
}
"""Name of a call → how it is entered in the book."""


def book_of(reading: Reading) -> Book:
    """The book of a run, made by the first oracle that asks for it."""
    if reading.book is None:
        reading.book = Book(reading)
    return reading.book
