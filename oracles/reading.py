"""How oracles read a trace: one course of the run for all of them, who can be blamed, and in what a record is nested.

An oracle is asked about every run, and nearly every run is clean. So a clean trace must cost next to nothing: `Reading`
goes through the records once, for all oracles together, and sorts the steps that any of them asks about. Sentences
(`circumstances`) are worked out where there is something to say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from reference_impl.trace import Kind, Phase, RecordTuple, Trace
from reference_impl.uefi.definitions import Tpl

if TYPE_CHECKING:
    from oracles.holdings import Book

THIRD_PARTY = "third-party"
"""The agent that does in a hostile environment what nobody may: what happens inside its notification is its doing."""

PLATFORM_AGENTS = frozenset(
    {
        *("", "DxeCore", "firmware", "os-loader", "os", "environment", THIRD_PARTY),
        # The core world's, which break the rules on purpose.
        *("caller", "other", "override", "manager", "refuser", "stubborn", "bus"),
    }
)
"""Agents that are no driver under test. What the environment itself does is never a finding."""

_SERVICE, _ENTRY, _CORE_MEMORY = int(Kind.SERVICE), int(Kind.ENTRY), int(Kind.CORE_MEMORY)
_INJECTED, _XENBUS_STATE = int(Kind.INJECTED), int(Kind.XENBUS_STATE)
_FRONTEND = "frontend"
_BOOT, _EXIT, _RUNTIME = int(Phase.BOOT), int(Phase.EXIT), int(Phase.RUNTIME)
_TPL_NAMES = {int(tpl): f"TPL_{tpl.name}" for tpl in Tpl}

KINDS = frozenset(
    int(kind)
    for kind in (
        *(Kind.OPERATION, Kind.ENTRY, Kind.CONNECTION, Kind.RESET, Kind.REFERENCE, Kind.XENBUS_STATE),
        *(Kind.EXIT, Kind.MEMORY, Kind.STUCK, Kind.STRAY, Kind.INJECTED),
    )
)
"""Kinds whose records oracles ask about, whatever their names are."""

NAMES = frozenset(
    {
        *("AllocatePool", "FreePool", "AllocatePages", "FreePages"),
        *("CreateEvent", "CreateEventEx", "CloseEvent", "SignalEvent", "WaitForEvent", "CheckEvent", "SetTimer"),
        *("Stall", "InstallConfigurationTable"),
        *("InstallProtocolInterface", "InstallMultipleProtocolInterfaces", "ReinstallProtocolInterface"),
        *("UninstallProtocolInterface", "UninstallMultipleProtocolInterfaces", "RegisterProtocolNotify"),
        *("OpenProtocol", "CloseProtocol", "OpenProtocolInformation", "HandleProtocol"),
        *("LocateHandleBuffer", "ProtocolsPerHandle", "ConnectController", "DisconnectController", "LoadImage"),
        *("EVTCHNOP_alloc_unbound", "EVTCHNOP_close", "XENMEM_add_to_physmap", "XENMEM_remove_from_physmap"),
        *("grant", "end", "WATCH", "UNWATCH", "WRITE"),
    }
)
"""Names of the calls that oracles ask about; of services, hypercalls, grants and xenstore requests."""


_CHANGES = frozenset((int(Kind.OPERATION), int(Kind.RESET), int(Kind.XENBUS_STATE)))

_OPENERS = frozenset({"RestoreTPL", "ExitBootServices", "StartImage", "UnloadImage"})
"""Services that nobody asks about, in which driver code may run. All others of that sort are in `NAMES`."""


class Entry:
    """One entry into driver code.

    step       of its record
    end        the first step that a reading knows behind it; the number of records where there is none
    depth      its nesting; what happens inside is deeper
    status     what it answered; None where it never returned
    returned   the TPL at which it returned, None where that is the one at which it was entered
    outer      the entry that it happened in, None outside of driver code
    """

    __slots__ = ("agent", "arguments", "depth", "end", "name", "outer", "returned", "status", "step")

    def __init__(self, step: int, record: RecordTuple, outer: Entry | None) -> None:
        self.step = self.end = step
        _, self.agent, _, self.depth, _, self.name, self.arguments, self.status, self.returned = record
        self.outer = outer

    @property
    def controller(self) -> int:
        """The controller that Supported(), Start() or Stop() is about."""
        controller: int = self.arguments[0]
        return controller

    @property
    def failed(self) -> bool:
        """Whether it answered an error."""
        return self.status is not None and self.status != 0

    @property
    def ending(self) -> str:
        """How it ended, for people: "Start() of XenPvBlkDxe answered EFI_NOT_FOUND"."""
        return f"{self.name}() of {self.agent} answered {self.status}"

    @property
    def ends_managing(self) -> bool:
        """Whether it is a Stop() that ended managing the controller, and not only children."""
        return self.name == "Stop" and self.status == 0 and not self.arguments[1]

    @property
    def is_of_the_environment(self) -> bool:
        """Whether it happened inside of the environment's own code, at any depth: then that is the cause of it."""
        return any(entry.agent in PLATFORM_AGENTS for entry in self.outwards())

    def outwards(self) -> Iterator[Entry]:
        """This entry and those around it, from the inside out."""
        entry: Entry | None = self
        while entry is not None:
            yield entry
            entry = entry.outer


class Reading:
    """One trace, read once.

    records  of the trace
    entries  into driver code that are over, in the order of their ends
    steps    kind of `KINDS`, or name of `NAMES` → the steps of its records; of the states of devices, only the front end's
    around   step of such a record → the innermost entry that it happened in
    course   the entries at their ends and the steps of calls and of changes of the platform, in order
    book     what was taken and given back (`holdings.book_of`), once an oracle has asked for it
    """

    __slots__ = ("_named", "around", "book", "course", "entries", "records", "steps")

    def __init__(self, trace: Trace) -> None:
        self.book: Book | None = None
        records = self.records = trace.records
        entries = self.entries = list[Entry]()
        steps = self.steps = dict[int | str, list[int]]()
        around = self.around = dict[int, Entry | None]()
        entry: Entry | None = None
        course = self.course = list[Entry | int]()
        kinds, names, openers, changes = KINDS, NAMES, _OPENERS, _CHANGES
        # What the core allocates is named for the service that it happens in, and nobody asks about it here.
        for step in [
            step
            for step, record in enumerate(records)
            if record[0] in kinds
            or (record[5] in names and record[0] != _CORE_MEMORY)
            or (record[5] in openers and opens(records, step))
        ]:
            record = records[step]
            kind, depth = record[0], record[3]
            key: int | str = record[5]
            while entry is not None and depth <= entry.depth:
                entry.end = step
                entries.append(entry)
                course.append(entry)
                entry = entry.outer
            if kind == _XENBUS_STATE and record[1] != _FRONTEND:
                continue
            around[step] = entry
            if kind in kinds:
                if kind == _ENTRY:
                    entry = Entry(step, record, entry)
                    continue
                key = kind
                if kind in changes:
                    course.append(step)
            elif key in openers:
                continue
            else:
                course.append(step)
            if key in steps:
                steps[key].append(step)
            else:
                steps[key] = [step]
        while entry is not None:
            entry.end = len(records)
            entries.append(entry)
            course.append(entry)
            entry = entry.outer
        named = self._named = dict[str, list[Entry]]()
        for entry in entries:
            if entry.name in named:
                named[entry.name].append(entry)
            else:
                named[entry.name] = [entry]

    def entries_of(self, *names: str) -> list[Entry]:
        """The entries with these names, in the order of their ends."""
        found = [entry for name in names for entry in self._named.get(name, ())]
        if len(names) > 1:
            found.sort(key=lambda entry: (entry.end, -entry.depth))
        return found

    def steps_of(self, *keys: int | str) -> list[int]:
        """The steps of the records with these kinds and names, in order."""
        assert all(key in KINDS or key in NAMES for key in keys), "the reading does not look at such records"
        found = [step for key in keys for step in self.steps.get(key, ())]
        found.sort()
        return found

    def merged(self, entries: Iterable[Entry], *keys: int | str) -> Iterator[Entry | int]:
        """These entries at their ends, and the steps of the records with these kinds and names, in order."""
        steps = self.steps_of(*keys)
        position = 0
        for entry in entries:
            while position < len(steps) and steps[position] < entry.end:
                yield steps[position]
                position += 1
            yield entry
        yield from steps[position:]

    def entry_at(self, step: int) -> Entry | None:
        """The innermost entry that any step happened in."""
        depth = self.records[step][3]
        inside = [entry for entry in self.entries if entry.step < step < entry.end and entry.depth < depth]
        return max(inside, key=lambda entry: entry.step, default=None)

    def who(self, step: int) -> str:
        """Whose doing a record is: the driver whose code ran there, and not a protocol that it called."""
        entry = self.around[step]
        return self.records[step][1] if entry is None else entry.agent


def start_of(records: Sequence[RecordTuple], phase: int) -> int:
    """The index of the first record of `phase` or a later one; the number of records where there is none.

    `phase` is EXIT or RUNTIME. Nothing of BOOT follows the first attempt to exit, and nothing at all the runtime phase, so
    binary searches find these places. From the first attempt on, the begin of EXIT is looked for: the phases in between
    come again with every attempt, and in a core of old so does EXIT itself.
    """
    assert phase in (_EXIT, _RUNTIME), "the phases before them come again with every attempt"
    if phase == _RUNTIME:
        return bisect_left(records, True, key=_is_runtime)
    attempt = bisect_left(records, True, key=_is_after_boot)
    return next((index for index in range(attempt, len(records)) if records[index][4] >= _EXIT), len(records))


def _is_after_boot(record: RecordTuple) -> bool:
    return record[4] != _BOOT


def _is_runtime(record: RecordTuple) -> bool:
    return record[4] == _RUNTIME


def notifier_of(records: Sequence[RecordTuple], index: int) -> str:
    """The agent of the innermost notification in which a record is nested, "" where it is in none.

    Where that is `THIRD_PARTY`, a driver's Stop() or Start() did not choose when it runs.
    """
    depth = records[index][3]
    for at in range(index - 1, -1, -1) if depth else ():
        kind, agent, _, outer, _, name, _, _, _ = records[at]
        if outer >= depth:
            continue
        if kind == _ENTRY and name == "Notify":
            return agent
        if outer == 0:
            break
        depth = outer
    return ""


def tpl_name(tpl: int) -> str:
    """A task priority level as people write it: "TPL_CALLBACK", or "TPL 12" for one that has no name."""
    return _TPL_NAMES.get(tpl) or f"TPL {tpl}"


def opens(records: Sequence[RecordTuple], step: int) -> bool:
    """Whether anything happened inside of a call."""
    return step + 1 < len(records) and records[step + 1][3] > records[step][3]


def injected(records: Sequence[RecordTuple], step: int) -> bool:
    """Whether the environment made this call fail: an armed failure fired in it."""
    return opens(records, step) and records[step + 1][0] == _INJECTED


def type_of(path: str) -> str:
    """The type of a device: "vbd" of "device/vbd/768"."""
    return path.split("/")[1]


def circumstances(records: Sequence[RecordTuple], index: int) -> str:
    """In what the record is nested, from the inside out: ", inside Stop of XenPvBlkDxe, inside … ".

    Only driver code and the services that drivers called are named; what the loader or the firmware called is not.
    """
    depth = records[index][3]
    words = []
    for record in reversed(records[:index]) if depth else ():
        if record[3] >= depth:
            continue
        kind, agent, _, depth, _, name, _, _, _ = record
        if agent not in PLATFORM_AGENTS:
            if kind == _ENTRY:
                words.append(
                    f", inside the notification of {agent}" if name == "Notify" else f", inside {name} of {agent}"
                )
            elif kind == _SERVICE:
                words.append(f", inside {name} by {agent}")
        if depth == 0:
            break
    return "".join(words)


def answer(status: object) -> str:
    """How a call ended: "it answered EFI_SUCCESS", or "it never returned"."""
    return "it never returned" if status is None else f"it answered {status}"
