"""Behaviour coverage: what the machine has been seen doing, beside which lines of code have run.

Lines say that code ran; they do not say in which state. Four maps do, each of rows and columns with a count in how many
runs a cell was seen. Every map begins with the cells that are possible and worth seeing, at 0: those that stay there are
the answer to "which never".

* *services*: each call, and how it answered. Possible is success, and what an armed failure can make of it.
* *references*: the bus's reference count and its hand-over flag (the design `reference-count`), at each moment at which
  they change or the bus's notification looks at them, by where the bus's notification is by then.
* *orders*: how many device drivers are notified at the exit, and where the bus is among them.
* *near misses*: for each oracle the situations in which a small mistake would break its rules, and nobody made it. An
  oracle that never came near anything has proved nothing.

Everything is read from the trace, so it is the same for the model and for real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from campaign.diagram import parents_of
from oracles.memory_services import ALLOCATING_SERVICES, MEMORY_SERVICES
from oracles.reading import PLATFORM_AGENTS
from reference_impl.failures import CALLS
from reference_impl.trace import Kind, Phase, Record, Trace
from reference_impl.uefi.status import EfiStatus
from reference_impl.xenbus.bus_driver import AGENT as BUS

SERVICES, REFERENCES, ORDERS, NEAR_MISSES = (
    "services × statuses",
    "reference counts",
    "notification orders",
    "near misses",
)

Cells = dict[str, dict[str, int]]
"""Row → column → in how many runs it was seen."""

COUNT_MAX = 4  # references, and devices notified, from which on more are all the same
_POSITIONS = ("outside of the exit", "before the bus's notification", "in the bus's notification", "after it")
_FLAGS = {"never set": (_POSITIONS[0], _POSITIONS[2]), "FALSE": _POSITIONS, "TRUE": _POSITIONS[1:]}
"""Hand-over flag → where the bus's notification can be. Only what happens in an exit makes it TRUE, and only a Stop makes
it FALSE."""
_PLACES = ("bus alone", "bus first", "bus between", "bus last", "no bus")
_RAISED = 8  # TPL_CALLBACK


class Behaviour:
    """Counts what runs show; `see` takes one after the other."""

    def __init__(self) -> None:
        self.maps: dict[str, Cells] = {
            SERVICES: {call: {_status(status): 0 for status in (_success(call), *CALLS[call])} for call in CALLS},
            REFERENCES: {
                _number(count): {f"{flag}, {position}": 0 for flag, places in _FLAGS.items() for position in places}
                for count in range(COUNT_MAX + 1)
            },
            ORDERS: {place: {_number(count): 0 for count in _counts(place)} for place in _PLACES},
            NEAR_MISSES: {},
        }
        for miss in NEAR_MISSES_OF:
            self.maps[NEAR_MISSES].setdefault(miss.oracle, {})[miss.sentence] = 0

    def see(self, trace: Trace) -> None:
        """Count each cell once that this run shows."""
        run = _Run(trace)
        self._count(SERVICES, set(_services(run)))
        self._count(REFERENCES, set(_references(run)))
        self._count(ORDERS, set(_orders(run)))
        self._count(NEAR_MISSES, {(miss.oracle, miss.sentence) for miss in NEAR_MISSES_OF if miss.shows(run)})

    def _count(self, name: str, cells: set[tuple[str, str]]) -> None:
        rows = self.maps[name]
        for row, column in sorted(cells):
            columns = rows.setdefault(row, {})
            columns[column] = columns.get(column, 0) + 1


def seen(cells: Cells) -> set[tuple[str, str]]:
    """The cells that were seen at all."""
    return {(row, column) for row, columns in cells.items() for column, count in columns.items() if count}


def size(cells: Cells) -> int:
    """How many cells there are."""
    return sum(map(len, cells.values()))


class _Run:
    """One trace, with names, and what each record is nested in."""

    def __init__(self, trace: Trace) -> None:
        self.records = [Record(*fields) for fields in trace.records]
        self._parents = parents_of(self.records)
        self._of_kind: dict[int, list[int]] = {}
        for step, record in enumerate(self.records):
            self._of_kind.setdefault(record.kind, []).append(step)

    def of(self, *kinds: Kind) -> list[int]:
        """The steps of these kinds, in order."""
        return sorted(step for kind in kinds for step in self._of_kind.get(kind, ()))

    def entries_around(self, step: int) -> Iterator[Record]:
        """The entries into driver code that a record is nested in, from the inside out."""
        while (step := self._parents[step]) >= 0:
            if self.records[step].kind == Kind.ENTRY:
                yield self.records[step]

    def inside(self, step: int, name: str) -> bool:
        """Whether a record is nested in an entry point of this name."""
        return any(entry.name == name for entry in self.entries_around(step))

    def services(self, *names: str) -> Iterator[tuple[int, Record]]:
        """The calls of these services by drivers, with their steps."""
        for step in self.of(Kind.SERVICE):
            record = self.records[step]
            if record.name in names and record.agent not in PLATFORM_AGENTS:
                yield step, record

    def entries(self, *names: str) -> Iterator[Record]:
        """The entries into driver code by these names, in the order in which they begin."""
        return (self.records[step] for step in self.of(Kind.ENTRY) if self.records[step].name in names)

    def exited(self) -> bool:
        """Whether the operating system runs in the end."""
        return bool(self.records) and self.records[-1].phase == Phase.RUNTIME

    def notified(self) -> list[Record]:
        """The notifications of the exit, in their order."""
        return [entry for entry in self.entries("Notify") if entry.phase == Phase.EXIT]


# ---- the maps -------------------------------------------------------------------------------------------------------


def _success(call: str) -> object:
    if call.startswith("XS_"):
        return "OK"
    return 0 if call.startswith(("HVMOP_", "EVTCHNOP_", "XENMEM_")) else EfiStatus.SUCCESS


def _status(status: object) -> str:
    if status is None:
        return "never returned"
    return "0" if status == 0 and not isinstance(status, EfiStatus) else str(status)


def _services(run: _Run) -> Iterator[tuple[str, str]]:
    for step in run.of(Kind.SERVICE, Kind.HYPERCALL):
        record = run.records[step]
        yield record.name, _status(record.status)
    for step in run.of(Kind.XENSTORE):
        record = run.records[step]
        yield f"XS_{record.name}", str(record.status)


def _references(run: _Run) -> Iterator[tuple[str, str]]:
    if not run.of(Kind.REFERENCE):
        return  # another design, which counts nothing
    count, flag, position = 0, "never set", _POSITIONS[0]
    for step in run.of(Kind.REFERENCE, Kind.CONNECTION, Kind.ENTRY, Kind.EXIT):
        record = run.records[step]
        if record.kind == Kind.CONNECTION:
            count, flag = 0, "never set"
            continue
        if record.kind == Kind.EXIT:
            position = _POSITIONS[1] if record.name == "exit-group" else position
            continue
        if record.kind == Kind.ENTRY:
            if (record.agent, record.name, record.phase) != (BUS, "Notify", Phase.EXIT):
                continue
            position = _POSITIONS[2]  # and it looks at count and flag
        else:
            count = record.value
            flag = "TRUE" if True in record.arguments else "FALSE" if False in record.arguments else flag
            if position == _POSITIONS[2] and all(entry.agent != BUS for entry in run.entries_around(step)):
                position = _POSITIONS[3]
        yield _number(count) if count >= 0 else "below 0", f"{flag}, {position}"


def _orders(run: _Run) -> Iterator[tuple[str, str]]:
    agents = [entry.agent for entry in run.notified() if entry.agent not in PLATFORM_AGENTS]
    devices = _number(sum(agent != BUS for agent in agents))
    if BUS not in agents:
        if agents:
            yield "no bus", devices
    elif len(agents) == agents.count(BUS):
        yield "bus alone", "0"
    elif agents[0] == BUS:
        yield "bus first", devices
    else:
        yield "bus last" if agents[-1] == BUS else "bus between", devices


def _counts(place: str) -> range:
    """How many devices there can be with the bus at this place."""
    if place == "bus alone":
        return range(1)
    return range(2 if place == "bus between" else 1, COUNT_MAX + 1)


def _number(count: int) -> str:
    return str(count) if count < COUNT_MAX else f"{COUNT_MAX} or more"


# ---- near misses ----------------------------------------------------------------------------------------------------


class NearMiss(NamedTuple):
    """A situation in which an oracle had something to look at, and nothing to say."""

    oracle: str
    sentence: str
    shows: Callable[[_Run], bool]


NEAR_MISSES_OF: list[NearMiss] = []
"""All of them, oracle by oracle."""


def _near_miss(oracle: str, sentence: str) -> Callable[[Callable[[_Run], bool]], Callable[[_Run], bool]]:
    def register(shows: Callable[[_Run], bool]) -> Callable[[_Run], bool]:
        NEAR_MISSES_OF.append(NearMiss(oracle, sentence, shows))
        return shows

    return register


@_near_miss("memory-services", "a driver uses a memory service in the BEFORE group, where that is allowed")
def _memory_in_before(run: _Run) -> bool:
    return any(record.phase == Phase.BEFORE for _, record in run.services(*MEMORY_SERVICES))


@_near_miss("memory-services", "the memory map moves between a failed exit and its retry")
def _map_moves_in_retry(run: _Run) -> bool:
    return any(run.records[step].phase == Phase.RETRY for step in run.of(Kind.MAP_KEY))


@_near_miss("memory-services", "an exit notification calls a service that could allocate, and does not")
def _could_allocate(run: _Run) -> bool:
    calls = {step for step, record in run.services(*ALLOCATING_SERVICES) if record.phase == Phase.EXIT}
    allocating = {step for step in run.of(Kind.CORE_MEMORY) if run.records[step].arguments[0] == "allocate"}
    return any(step + 1 not in allocating for step in calls)


@_near_miss("connection-reset", "the connection is reset in Stop")
def _reset_in_stop(run: _Run) -> bool:
    return any(run.inside(step, "Stop") for step in run.of(Kind.RESET))


@_near_miss("connection-reset", "a second connection is reset in the same run")
def _second_reset(run: _Run) -> bool:
    return any(run.records[step].arguments[0] > 1 for step in run.of(Kind.RESET))


@_near_miss("connection-reset", "the reset comes from a device's notification, not from the bus's")
def _reset_by_device(run: _Run) -> bool:
    return any(
        entry.name == "Notify" and entry.agent != BUS
        for step in run.of(Kind.RESET)
        for entry in run.entries_around(step)
    )


@_near_miss("connection-reset", "the exit comes when no connection is in use")
def _nothing_in_use(run: _Run) -> bool:
    resets = {(run.records[step].name, run.records[step].arguments) for step in run.of(Kind.RESET)}
    exits = [step for step in run.of(Kind.EXIT) if run.records[step].name == "exit-group"]
    return any(
        all((run.records[step].name, run.records[step].arguments) in resets for step in run.of(Kind.CONNECTION))
        and all(step < place for step in run.of(Kind.RESET))
        for place in exits
    )


@_near_miss("reference-count", "the count falls to zero before the exit")
def _zero_before_exit(run: _Run) -> bool:
    return any(
        run.records[step].value == 0 and run.records[step].phase == Phase.BOOT for step in run.of(Kind.REFERENCE)
    )


@_near_miss("reference-count", "the count rises again after it was zero")
def _rises_again(run: _Run) -> bool:
    values = [run.records[step].value for step in run.of(Kind.REFERENCE)]
    return 0 in values and any(value > 0 for value in values[values.index(0) :])


@_near_miss("reference-count", "a device's Start fails while the bus counts others")
def _start_fails_with_references(run: _Run) -> bool:
    count = 0
    for step in run.of(Kind.REFERENCE, Kind.ENTRY):
        record = run.records[step]
        if record.kind == Kind.REFERENCE:
            count = record.value
        elif count > 0 and record.name == "Start" and record.agent != BUS and _failed(record):
            return True
    return False


@_near_miss("hand-over", "an exit fails, and its retry succeeds")
def _retry_succeeds(run: _Run) -> bool:
    return run.exited() and sum(run.records[step].name == "attempt" for step in run.of(Kind.EXIT)) > 1


@_near_miss("hand-over", "the operating system connects to a device that no driver had started")
def _untouched_device(run: _Run) -> bool:
    started = {run.records[step].name for step in run.of(Kind.XENBUS_STATE) if run.records[step].agent == "frontend"}
    found = (run.records[step] for step in run.of(Kind.TAKE_OVER))
    return any(record.name.startswith("device/") and record.name not in started for record in found)


@_near_miss("hand-over", "the operating system connects to a device that was closed in a notification")
def _closed_in_notification(run: _Run) -> bool:
    return run.exited() and any(
        run.records[step].agent == "frontend" and run.records[step].phase == Phase.EXIT
        for step in run.of(Kind.XENBUS_STATE)
    )


@_near_miss("event-lifetime", "a driver closes an event in its own notification")
def _closes_itself(run: _Run) -> bool:
    return any(
        entry.name == "Notify" and entry.arguments[:1] == record.arguments[:1]
        for step, record in run.services("CloseEvent")
        for entry in run.entries_around(step)
    )


@_near_miss("event-lifetime", "a driver's event cannot be created")
def _event_refused(run: _Run) -> bool:
    return any(_failed(record) for _, record in run.services("CreateEvent", "CreateEventEx"))


@_near_miss("event-lifetime", "a driver closes its exit event and makes another")
def _event_again(run: _Run) -> bool:
    closed: set[str] = set()
    for _, record in run.services("CreateEvent", "CreateEventEx", "CloseEvent"):
        if record.name == "CloseEvent":
            closed.add(record.agent)
        elif record.agent in closed:
            return True
    return False


@_near_miss("tpl", "a driver raises the TPL inside a notification")
def _raises_in_notification(run: _Run) -> bool:
    return any(run.inside(step, "Notify") for step, _ in run.services("RaiseTPL"))


@_near_miss("tpl", "a driver is entered above TPL_CALLBACK")
def _entered_high(run: _Run) -> bool:
    return any(entry.tpl > _RAISED for entry in run.entries("Supported", "Start", "Stop", "Notify", "Unload"))


@_near_miss("protocol-usage", "an OpenProtocol is refused because another driver has it")
def _open_refused(run: _Run) -> bool:
    return any(record.status == EfiStatus.ACCESS_DENIED for _, record in run.services("OpenProtocol"))


@_near_miss("protocol-usage", "a Start fails after it has opened a protocol")
def _start_fails_open(run: _Run) -> bool:
    return any(
        entry.name == "Start" and _failed(entry)
        for step, record in run.services("OpenProtocol")
        if not _failed(record)
        for entry in run.entries_around(step)
    )


@_near_miss("start-stop", "a Start fails, and a later one of the same driver succeeds")
def _starts_after_failure(run: _Run) -> bool:
    failed: set[str] = set()
    for entry in run.entries("Start"):
        if _failed(entry):
            failed.add(entry.agent)
        elif entry.agent in failed:
            return True
    return False


@_near_miss("start-stop", "a driver is stopped and started again")
def _restarted(run: _Run) -> bool:
    stopped: set[str] = set()
    for entry in run.entries("Start", "Stop"):
        if entry.name == "Stop":
            stopped.add(entry.agent)
        elif entry.agent in stopped and not _failed(entry):
            return True
    return False


@_near_miss("start-stop", "a Stop is asked for some children only")
def _stops_children(run: _Run) -> bool:
    return any(entry.arguments[1] for entry in run.entries("Stop"))


@_near_miss("memory-ownership", "an allocation fails inside Start")
def _allocation_fails_in_start(run: _Run) -> bool:
    return any(
        _failed(record) and run.inside(step, "Start") for step, record in run.services("AllocatePool", "AllocatePages")
    )


@_near_miss("memory-ownership", "a driver is unloaded after it had been started")
def _unloaded(run: _Run) -> bool:
    started = {entry.agent for entry in run.entries("Start") if not _failed(entry)}
    return any(entry.agent in started for entry in run.entries("Unload"))


@_near_miss("waiting", "a peer is asked again because it has not moved yet")
def _asked_again(run: _Run) -> bool:
    last: tuple[object, ...] = ()
    for step in run.of(Kind.XENSTORE):
        record = run.records[step]
        asked = (record.agent, record.name, record.arguments, record.value)
        if record.name == "READ" and asked == last:
            return True
        last = asked
    return False


@_near_miss("waiting", "a driver waits for a peer while timers are off")
def _waits_at_exit(run: _Run) -> bool:
    return any(
        run.records[step].phase == Phase.EXIT and run.records[step].agent == "backend"
        for step in run.of(Kind.XENBUS_STATE)
    )


@_near_miss("order-independence", "exit notifications run in another order than edk2's")
def _other_order(run: _Run) -> bool:
    events = [entry.arguments[0] for entry in run.notified()]
    return events != sorted(events, reverse=True)


def _failed(record: Record) -> bool:
    return isinstance(record.status, EfiStatus) and record.status.is_error
