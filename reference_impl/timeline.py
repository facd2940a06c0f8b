"""A trace as a timeline that people read: one line a record, indented by nesting, names in place of numbers.

      step  phase    TPL          what happened

          ──── operation 0: connect controller=bus driver=any recursive=TRUE
         1  BOOT     APPLICATION  firmware: ConnectController(controller=0x1, …) = EFI_SUCCESS
         2  BOOT     APPLICATION    XenBusDxe enters Supported(controller=0x1, remaining_device_path=NULL) = EFI_SUCCESS
    >>>  3  BOOT     APPLICATION      XenBusDxe: OpenProtocol(handle=0x1, protocol=XENIO, …) = EFI_SUCCESS → 0x1000
         >>> what is wrong with it

A call stands where it began, with its answer; what happened inside it follows, further to the right. A call without an
answer never returned.

The names of arguments are those of the boot services' own Python signatures: there is no second list to keep up.
What a number stands for follows from the argument's name (`_MEANINGS`); a GUID is known by its text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import IntEnum, IntFlag
from functools import cache
from typing import Any

from reference_impl.scenario import OPERATIONS
from reference_impl.trace import Kind, Phase, Record, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import (
    AllocateType,
    EventType,
    InterfaceType,
    MemoryType,
    OpenAttribute,
    SearchType,
    TimerDelay,
    Tpl,
)
from reference_impl.uefi.pci_io import PciIo
from reference_impl.uefi.runtime_services import RuntimeServices
from reference_impl.uefi.status import EfiStatus

HEADER = "    step  phase    TPL          what happened"

XENBUS_STATES = (
    *("Unknown", "Initialising", "InitWait", "Initialised", "Connected"),
    *("Closing", "Closed", "Reconfiguring", "Reconfigured"),
)
"""States of a device's front end and back end, by number (Xen, public header io/xenbus.h)."""

_ENTRY_FIELDS: dict[str, tuple[str, ...]] = {
    "Supported": ("controller", "remaining_device_path"),
    "Start": ("controller", "remaining_device_path"),
    "Stop": ("controller", "children"),
    "Unload": ("image_handle",),
    "Notify": ("event", "group"),
    "ExitCallback": ("device",),
}

_HYPERCALL_FIELDS: dict[str, tuple[str, ...]] = {
    "HVMOP_get_param": ("parameter",),
    "EVTCHNOP_alloc_unbound": ("remote_domain",),
    "EVTCHNOP_send": ("port",),
    "EVTCHNOP_close": ("port",),
    "XENMEM_add_to_physmap": ("space", "index", "frame"),
    "XENMEM_remove_from_physmap": ("frame",),
}

_EXIT_FIELDS: dict[str, tuple[str, ...]] = {"attempt": ("map_key",), "key-check": ("map_key", "current_key")}

# Xen's own numbers, whatever the machine that the timeline is printed on has (Xen, public header errno.h).
_ERRNO = {-2: "-ENOENT", -3: "-ESRCH", -12: "-ENOMEM", -16: "-EBUSY", -17: "-EEXIST", -22: "-EINVAL", -28: "-ENOSPC"}

_TEXT_MAX = 60  # characters of one value


def lines(trace: Trace, marks: Mapping[int, str] | None = None, only: Collection[int] | None = None) -> Iterator[str]:
    """The lines of the timeline.

    marks  maps steps to a sentence, which stands below the marked step
    only   the steps of an excerpt; "⋯" stands for what is left out
    """
    marks = marks or {}
    yield HEADER
    left_out = False
    for step, fields in enumerate(trace.records):
        if only is not None and step not in only:
            left_out = True
            continue
        if left_out:
            left_out = False
            yield f"{'⋯':>8}"
        record = Record(*fields)
        mark = ">>>" if step in marks else "   "
        if record.kind == Kind.OPERATION:
            yield ""
            yield f"{mark}       ──── {_operation(record)}"
        else:
            tpl = _name_of(Tpl, record.tpl, str)
            what = f"{'  ' * record.depth}{describe(record)}"
            yield f"{mark}{step:>5}  {Phase(record.phase).name:<7}  {tpl:<11}  {what}".rstrip()
        if step in marks:
            yield f"{' ' * 10}>>> {marks[step]}"
    if left_out:
        yield f"{'⋯':>8}"


def describe(record: Record) -> str:
    """One record as a phrase, without step, phase, TPL and nesting."""
    return _PHRASES[record.kind](record)


# ---- one phrase for each kind of record -----------------------------------------------------------------------------


def _operation(record: Record) -> str:
    entry = OPERATIONS.get(record.name)
    names = tuple(field.name for field in entry.fields) if entry else ()
    given = "".join(f" {name}={_value('', value)}" for name, value in zip(names, record.arguments, strict=False))
    if record.status is None:
        end = ""
    elif isinstance(record.status, EfiStatus):
        end = f"   = {record.status}"
    else:
        end = f"   (skipped: {record.status})"
    return f"operation {record.value}: {record.name}{given}{end}"


def _service(record: Record) -> str:
    fields = _service_fields().get(record.name, ())
    return f"{record.agent}: {record.name}({_arguments(fields, record.arguments)}){_answer(record)}"


def _core_memory(record: Record) -> str:
    what, size_bytes = record.arguments
    amount = f"allocates {size_bytes} bytes at" if what == "allocate" else "frees"
    caller = f", in {record.name} of {record.agent}" if record.name else ""  # none while the machine is set up
    return f"core{caller}: {amount} {_value('address', record.value)}"


def _entry(record: Record) -> str:
    fields = _ENTRY_FIELDS.get(record.name, ())
    entered = f"{record.agent} enters {record.name}({_arguments(fields, record.arguments)})"
    status = "" if record.status is None else f" = {record.status}"
    tpl = "" if record.value is None else f", and returns at {_name_of(Tpl, record.value, str)}"
    return f"{entered}{status}{tpl}"


def _injected(record: Record) -> str:
    return f"armed failure: {record.name} by {record.agent} answers {_errno(record.status)}"


def _hypercall(record: Record) -> str:
    fields = _HYPERCALL_FIELDS.get(record.name, ())
    call = f"{record.agent}: hypercall {record.name}({_arguments(fields, record.arguments)})"
    if record.status is None:
        return call
    value = "" if record.value is None else f" → {_value('', record.value)}"
    return f"{call} = {_errno(record.status)}{value}"


def _xenstore(record: Record) -> str:
    return f"xenstored, for {record.agent}: {record.name}({_arguments((), record.arguments)}){_answer(record)}"


def _connection(record: Record) -> str:
    return f"{record.agent} takes the {record.name} into use, generation {_arguments((), record.arguments)}"


def _reset(record: Record) -> str:
    means = "" if record.value is None else f", by: {record.value}"
    return f"{record.agent} resets the {record.name}, generation {_arguments((), record.arguments)}{means}"


def _reference(record: Record) -> str:
    return f"{record.agent}: {record.name}({_arguments((), record.arguments)}), count is now {record.value}"


def _grant(record: Record) -> str:
    fields = {"grant": ("reference", "frame", "domain")}.get(record.name, ("reference", "frame"))
    return f"{record.agent}: {record.name} access ({_arguments(fields, record.arguments)}){_answer(record)}"


def _xenbus_state(record: Record) -> str:
    old, new = (_state(value) for value in record.arguments)
    return f"{record.agent} of {record.name}: state {old} → {new}"


def _map_key(record: Record) -> str:
    old, new = record.arguments
    cause = f", by {record.agent}" if record.agent else ""
    return f"memory map key {old} → {new}{cause}"


def _exit(record: Record) -> str:
    given = _arguments(_EXIT_FIELDS.get(record.name, ()), record.arguments)
    return f"ExitBootServices: {record.name}{f' ({given})' if given else ''}{_answer(record)}"


def _memory(record: Record) -> str:
    return f"misuse by {record.agent}: {record.name} ({_arguments(('address', 'owner'), record.arguments)})"


def _take_over(record: Record) -> str:
    given = f" ({_arguments((), record.arguments)})" if record.arguments else ""
    blame = f" (left by {record.value})" if record.value else ""
    return f"operating system takes over: {record.name}{given} = {record.status}{blame}"


def _stuck(record: Record) -> str:
    inside = f" in {_arguments((), record.arguments)}" if record.arguments else ""
    return f"run ended: {record.name}{inside}, {record.agent}"


def _driver_state(record: Record) -> str:
    return f"{record.agent}: its {record.name} becomes {_value('', record.value)}"


def _fault(record: Record) -> str:
    address, *frames = record.arguments
    what = record.name
    if what in ("read", "write", "fetch"):
        what += f" of {address:#x}, where nothing is"
    if record.value:
        what += f", {record.value}"
    return f"{record.agent} faults: {what}, at {', called from '.join(frames)}"


def _stray(record: Record) -> str:
    port, *frames = record.arguments
    return f'{record.agent}: "{record.name}" with port {port:#x}, where nothing is, called from {", ".join(frames)}'


_PHRASES: dict[int, Callable[[Record], str]] = {
    Kind.OPERATION: _operation,
    Kind.SERVICE: _service,
    Kind.CORE_MEMORY: _core_memory,
    Kind.ENTRY: _entry,
    Kind.INJECTED: _injected,
    Kind.HYPERCALL: _hypercall,
    Kind.XENSTORE: _xenstore,
    Kind.CONNECTION: _connection,
    Kind.RESET: _reset,
    Kind.REFERENCE: _reference,
    Kind.GRANT: _grant,
    Kind.XENBUS_STATE: _xenbus_state,
    Kind.MAP_KEY: _map_key,
    Kind.EXIT: _exit,
    Kind.MEMORY: _memory,
    Kind.TAKE_OVER: _take_over,
    Kind.STUCK: _stuck,
    Kind.DRIVER_STATE: _driver_state,
    Kind.FAULT: _fault,
    Kind.STRAY: _stray,
}


# ---- values ---------------------------------------------------------------------------------------------------------


@cache
def _service_fields() -> dict[str, tuple[str, ...]]:
    """The arguments' names of every service, from the methods' signatures."""
    fields = {}
    for services in (BootServices, RuntimeServices, PciIo):
        for attribute in dir(services):
            method = getattr(services, attribute)
            name = getattr(method, "service_name", None)
            if name is not None:
                fields[name] = tuple(inspect.signature(method.__wrapped__).parameters)[1:]
    return fields


def _arguments(names: tuple[str, ...], values: tuple[Any, ...]) -> str:
    """Arguments as "name=value"; where there are more values than names, the last name holds for the rest.

    A trailing `out=True`, which says that the caller passed no null pointer, is left out.
    """
    shown = []
    for index, value in enumerate(values):
        name = names[min(index, len(names) - 1)] if names else ""
        if name == "out":
            if value is not True:
                shown.append("out=NULL")
        else:
            shown.append(f"{name}={_value(name, value)}" if name and index < len(names) else _value(name, value))
    return ", ".join(shown)


def _answer(record: Record) -> str:
    """Status and value: " = EFI_SUCCESS → 0x1000"; nothing for a call that never returned."""
    if record.status is None:
        return ""
    result = _RESULTS.get(record.name, "handle") if record.kind == Kind.SERVICE else ""
    value = "" if record.value is None else f" → {_value(result, record.value)}"
    return f" = {record.status}{value}"


_RESULTS = {"RaiseTPL": "tpl", "WaitForEvent": "index", "GetMemoryMap": "map_key"}
"""Services whose result is neither a handle nor an address, under the argument's name that says what it is."""

_MEANINGS: dict[str, type[IntEnum] | type[IntFlag]] = {
    "allocate_type": AllocateType,
    "attributes": OpenAttribute,
    "delay_type": TimerDelay,
    "event_type": EventType,
    "interface_type": InterfaceType,
    "memory_type": MemoryType,
    "search_type": SearchType,
    "new_tpl": Tpl,
    "notify_tpl": Tpl,
    "old_tpl": Tpl,
    "tpl": Tpl,
}
"""What an argument's number stands for, by the argument's name."""

_DECIMAL = ("_bytes", "_count", "_100ns", "_key", "microseconds", "index", "parameter", "domain", "space", "port")
"""Ends of the names of arguments that are read as decimal numbers. All other named ones are handles and addresses."""


def _value(name: str, value: Any) -> str:
    """One value for people: names for numbers that have one, hexadecimal for handles and addresses."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        meaning = _MEANINGS.get(name)
        if meaning is not None:
            return _name_of(meaning, value, hex)
        decimal = name.endswith(_DECIMAL) if name else -0x10000 < value < 0x10000
        return str(value) if decimal else f"{value:#x}"
    if isinstance(value, str):
        return guids.NAMES.get(value) or (value[:_TEXT_MAX] + "…" if len(value) > _TEXT_MAX else value or '""')
    if isinstance(value, bytes):
        shown = repr(value[:_TEXT_MAX])[1:]
        return shown if len(value) <= _TEXT_MAX else f"{shown}…"
    if isinstance(value, tuple | list):
        if len(value) > 8:
            return f"({len(value)} entries)"
        return f"({', '.join(_value(name, item) for item in value)})"
    return type(value).__name__  # a repr may hold an address of this process


def _name_of(vocabulary: type[IntEnum] | type[IntFlag], value: int, otherwise: Callable[[int], str]) -> str:
    """The vocabulary's name for a value; single flags joined by "|" where a combination has no name of its own."""
    for name, member in vocabulary.__members__.items():
        if member == value:
            return name
    if issubclass(vocabulary, IntFlag):
        flags = [flag for flag in vocabulary if flag & value]  # iteration gives single bits only
        if flags and sum(flags) == value:
            return "|".join(flag.name or "" for flag in flags)
    return otherwise(value)


def _state(value: Any) -> str:
    """A xenbus state by name, from a number or its digits; what is neither stays as it is."""
    text = str(value)
    return XENBUS_STATES[int(text)] if text.isdecimal() and int(text) < len(XENBUS_STATES) else _value("", value)


def _errno(status: Any) -> str:
    """A hypervisor's answer: "OK", "-EINVAL"; other statuses by their own name."""
    if type(status) is not int:
        return str(status)
    return "OK" if status == 0 else _ERRNO.get(status, str(status))
