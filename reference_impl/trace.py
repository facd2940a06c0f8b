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

from enum import IntEnum
from typing import Any, NamedTuple

RecordTuple = tuple[int, str, int, int, int, str, tuple[Any, ...], Any, Any]


class Kind(IntEnum):
    """What a record tells.

    kind           name; arguments; status; value
    OPERATION      the scenario's next operation; its arguments; None, why it was skipped, or its refusal; its index
    SERVICE        a boot service, "AllocatePool"; as called; EfiStatus; what it returned
    CORE_MEMORY    the core itself allocates or frees, inside the service `name` that `agent` called;
                   ("allocate" or "free", bytes)
    ENTRY          driver code is entered: "Supported", "Start", "Stop", "Unload", "Notify", "ExitCallback" …;
                   its arguments; EfiStatus; the TPL at which it returned, None if at the one at which it was entered
    INJECTED       an armed failure fires, name of the call; (); the status that it will answer
    HYPERCALL      "EVTCHNOP_send"; as called; 0 or a negative errno; what it returned
    XENSTORE       xenstored answers a request, "READ"; (path, payload); "OK" or the error's name; the answer
    CONNECTION     "ring" or "grant-table" is taken into use; (generation,)
    RESET          "ring" or "grant-table" is reset; (generation,); None; by what means
    REFERENCE      "AddReference" or "RemoveReference" by `agent`, the bus; (device, what was passed …); None; the count
                   afterwards
    GRANT          "grant", "end", "map" or "unmap"; (reference, frame …); "OK" or the refusal
    XENBUS_STATE   `agent` is "frontend" or "backend"; name is the device, "device/vbd/0"; (old, new)
    MAP_KEY        the memory map key moves, "bump"; (old, new)
    EXIT           a step of ExitBootServices: "attempt", "before-group", "timers-off", "key-check", "failed-group",
                   "exit-group", "runtime"
    MEMORY         misuse that the memory model saw: "use-after-free", "double-free", "foreign-free", "overrun";
                   (address, owner)
    TAKE_OVER      a step of the operating system: "memory-map", "store", "grant-table", "event-channel", or a device;
                   details; "OK" or what is in the way; the agent responsible
    STUCK          the run ends because nothing moves on: "step-budget", "endless-wait", "no-progress" or "nesting"; (in
                   which call,)
    DRIVER_STATE   a variable in which a driver keeps its state takes a value that it never had: its name; (); None;
                   the value
    FAULT          guest code did what no processor allows, and the run ends: "read", "write", "fetch" of memory that is
                   not there, "exception", "halt"; (address, where, who called …), "XenBusDxe+0x489 (leaf)" where a
                   function that calls no other did what its caller says; None; which exception, or None.
                   "crash" of the agent "emulator": not the guest died, but its processor; (0, after what); None; how
    STRAY          guest code uses an I/O port where nothing is, "in" or "out", for the first time at this place;
                   (port, who called …)
    """

    OPERATION = 0
    SERVICE = 1
    CORE_MEMORY = 2
    ENTRY = 3
    INJECTED = 4
    HYPERCALL = 5
    XENSTORE = 6
    CONNECTION = 7
    RESET = 8
    REFERENCE = 9
    GRANT = 10
    XENBUS_STATE = 11
    MAP_KEY = 12
    EXIT = 13
    MEMORY = 14
    TAKE_OVER = 15
    STUCK = 16
    DRIVER_STATE = 17
    FAULT = 18
    STRAY = 19


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
    there is no second copy. `blocks` are basic blocks of real images that ran for the first time, by image and offset.
    """

    __slots__ = ("blocks", "depth", "phase", "records", "tpl")

    def __init__(self) -> None:
        self.records: list[RecordTuple] = []
        self.blocks: dict[str, list[int]] = {}
        self.tpl = 4
        self.depth = 0
        self.phase = 0

    def add(
        self, kind: int, agent: str, name: str, arguments: tuple[Any, ...] = (), status: Any = None, value: Any = None
    ) -> None:
        """Append one record, stamped with the current TPL, depth and phase."""
        self.records.append((kind, agent, self.tpl, self.depth, self.phase, name, arguments, status, value))
