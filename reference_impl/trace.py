"""What happened in one run: a flat sequence of small records, and how people read it.

A record is a plain tuple of nine fields, the same nine for every kind:

    (kind, agent, tpl, depth, phase, name, arguments, status, value)

    kind       `Kind`: what sort of thing happened
    agent      who did it: the image whose code called ("XenBusDxe"), or a part of the platform ("xenstored")
    tpl        the task priority level of the processor at that moment (at the call, not at the return)
    depth      nesting: a record belongs to the nearest record before it that has a smaller depth
    phase      `Phase`: how far ExitBootServices has come
    name       which service, entry point, device, rule …; see the table in `Kind`
    arguments  tuple of plain values (int, str, bytes, None)
    status     how it ended; None where nothing can end, and for a call that never returned
    value      what was returned

A call has one record, at the place where it began; it is completed when the call returns. What happened inside follows
with a greater depth, so begin and end of everything can be seen without a second record.

Plain tuples are twice as fast to make as anything with field names, and a campaign makes hundreds of millions of them.
`Record` gives the names back to whoever reads a single one.

What deliberately lives elsewhere: judging (`oracles`), and recording a boot service (`reference_impl.uefi.core.service`).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

RecordTuple = tuple[int, str, int, int, int, str, tuple[Any, ...], Any, Any]


class Kind(IntEnum):
    """What a record tells. The comment gives name, arguments, status, value."""

    OPERATION = (
        0  # the scenario's next operation: its name, its arguments, None, the reason why it was skipped, or the refusal that ended it, index
    )
    SERVICE = 1  # boot service: "AllocatePool", arguments as called, EfiStatus, what it returned
    CORE_MEMORY = 2  # the core itself, inside a service: name of the outermost service called by `agent`, ("allocate"|"free", bytes)
    ENTRY = 3  # driver code entered: "Supported" | "Start" | "Stop" | "Unload" | "Notify" | "ExitCallback", its arguments, EfiStatus
    INJECTED = 4  # an armed failure fires: name of the call, (n,), the status that it will answer
    HYPERCALL = 5  # "EVTCHNOP_send", arguments as called, 0 or a negative errno, what it returned
    XENSTORE = 6  # xenstored answers one request: "READ" …, (path, payload …), "OK" or the error's name, the answer
    CONNECTION = 7  # a connection resource is taken into use: "ring" | "grant-table", (generation,)
    RESET = 8  # a connection resource is reset: "ring" | "grant-table", (generation,), None, the means
    REFERENCE = 9  # reference count of a bus: "AddReference" | "RemoveReference", arguments, None, the count afterwards
    GRANT = 10  # grant entry: "grant" | "end" | "map" | "unmap", (reference, frame …), "OK" or the refusal
    XENBUS_STATE = 11  # a device's `state` node: agent "frontend" | "backend", name "device/vbd/0", (old, new)
    MAP_KEY = 12  # the memory map key moved: "bump", (old, new)
    EXIT = 13  # a step of ExitBootServices: "attempt" | "before-group" | "timers-off" | "key-check" | "failed-group" | "exit-group" | "runtime"
    MEMORY = 14  # misuse that the memory model saw: "use-after-free" | "double-free" | "foreign-free", (address, owner)
    TAKE_OVER = 15  # one step of the operating system: "memory-map" | "store" | "grant-table" | "event-channel" | device path, (…), "OK" or what is in the way, agent responsible
    DRIVER_STATE = 17  # a variable in which a driver keeps its own state takes a value that it never had: its name, (), None, the value
    STUCK = 16  # the run ended because nothing moves on: "step-budget" | "no-progress" | "nesting", (in which call,)


class Phase(IntEnum):
    """How far ExitBootServices has come (UEFI 2.10 §7.4.6)."""

    BOOT = 0  # boot services, before the first exit attempt
    BEFORE = 1  # notifications of EFI_EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES run
    CHECK = 2  # inside ExitBootServices, outside of any group
    FAILED = 3  # notifications of the EBS-failed group run
    RETRY = 4  # an exit attempt has failed; the loader holds the machine until it tries again
    EXIT = 5  # notifications of EFI_EVENT_GROUP_EXIT_BOOT_SERVICES run
    RUNTIME = 6  # the operating system owns the machine


class Record(NamedTuple):
    """A record with names, for those who look at one: `Record(*trace.records[17])`."""

    kind: int
    agent: str
    tpl: int
    depth: int
    phase: int
    name: str
    arguments: tuple[Any, ...]
    status: Any
    value: Any


class StepBudgetExceeded(BaseException):
    """The run used up its step budget, or waits for something that can never come.

    Not an `Exception`: no driver under test may catch it.
    """


class Trace:
    """The records of one run, and the context that every record is stamped with.

    `tpl`, `depth` and `phase` are the machine's own current values, kept here because this is where they are needed most:
    there is no second copy.
    """

    __slots__ = ("depth", "phase", "records", "tpl")

    def __init__(self) -> None:
        self.records: list[RecordTuple] = []
        self.tpl = 4
        self.depth = 0
        self.phase = 0

    def add(
        self, kind: int, agent: str, name: str, arguments: tuple[Any, ...] = (), status: Any = None, value: Any = None
    ) -> None:
        """Append one record, stamped with the current TPL, depth and phase."""
        self.records.append((kind, agent, self.tpl, self.depth, self.phase, name, arguments, status, value))
