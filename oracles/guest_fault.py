"""Code of a real image neither faults nor turns in a loop that nothing can end.

The evidence is the machine's: a run of real drivers ends where the processor cannot go on (`Kind.FAULT`), or where code
turns without calling anything while nothing outside of it can change any more (`Kind.STUCK`, "dead-loop"). On a real
machine that is a reset, a hang, or, where the firmware maps the page at address 0, memory that is overwritten in
silence.

A cause counts once: a finding is about the *place* in the image, however many allocations, statuses and scenarios lead
there. The place is where the fault was; in a function that only copies memory or measures a string, which the backtrace
marks as a leaf, it is where that was called. A dead loop is seen at any of its instructions: what counts is the entry
point that it keeps from coming back. What an access is about follows from its address: in the first page, or an
offset back from zero, it went through a NULL pointer; elsewhere it is memory that nobody holds.

Code that uses an I/O port where nothing is (`Kind.STRAY`) goes on, as on a real machine, and the place counts once, too.

Sources: UEFI 2.10 §7.2.1 and §7.2.4 (what AllocatePages and AllocatePool answer when they are out of resources), §2.3.4
(the machine that X64 code finds), §14.4 (the way to a PCI device), §7.1 and §7.1.5 (how long code may keep the
processor, and WaitForEvent).
"""

from __future__ import annotations

import re

from oracles.finding import Finding, Rule
from oracles.reading import Reading
from reference_impl.trace import Kind

ORACLE = "guest-fault"

RULES = {
    "null-pointer": Rule(
        "UEFI 2.10 §7.2.4, §7.2.1", "What a service did not give is not used: a refused allocation leaves no buffer."
    ),
    "access": Rule("UEFI 2.10 §2.3.4", "Driver code reads, writes and executes only memory that is there for it."),
    "exception": Rule("UEFI 2.10 §2.3.4", "Driver code raises no exception of the processor."),
    "halt": Rule("UEFI 2.10 §7.1.5", "Driver code does not stop the processor: it waits with WaitForEvent."),
    "stray-port": Rule(
        "UEFI 2.10 §14.4", "Driver code reaches its device through PciIo, and uses no I/O port where nothing is."
    ),
    "crash": Rule("UEFI 2.10 §2.3.4", "Driver code runs on the processor: it does not bring the emulator of it down."),
    "dead-loop": Rule("UEFI 2.10 §7.1", "Driver code ends: it turns in no loop that nothing can end."),
}

LEAF = " (leaf)"
"""How a backtrace marks a fault in a function that calls no other (`Kind.FAULT`)."""

_NAME = re.compile(r" \[[^]]*\]")  # a function's name in a frame: what lies beside the image must not matter
_NULL_REACH = 0x1000  # bytes on both sides of address 0 that stand for a member of what is not there
_MASK64 = (1 << 64) - 1
_ENTRY, _FAULT, _STRAY, _STUCK = int(Kind.ENTRY), int(Kind.FAULT), int(Kind.STRAY), int(Kind.STUCK)
_ACCESSES = frozenset({"read", "write", "fetch"})


def check(reading: Reading) -> list[Finding]:
    """Judge how the run ended, as a fault is the last thing that happens, and the ports that were used on the way."""
    strays = []
    for step in reading.steps_of(_STRAY):
        _, agent, _, _, _, name, (port, *frames), _, _ = reading.records[step]
        strays.append(_finding("stray-port", agent, frames, step, f'"{name}" with port {port:#x}, where nothing is'))
    return strays + _end(reading)


def _end(reading: Reading) -> list[Finding]:
    step = len(reading.records) - 1
    if step < 0:
        return []
    kind, agent, _, _, _, name, arguments, _, detail = reading.records[step]
    if kind == _FAULT:
        address, *frames = arguments
        if name in _ACCESSES:
            null = min(address, -address & _MASK64) < _NULL_REACH
            seen = f"{name} of {address:#x}, where nothing is"
            return [_finding("null-pointer" if null else "access", agent, frames, step, seen)]
        return [_finding(name, agent, frames, step, detail or name)]
    if kind == _STUCK and name == "dead-loop":
        around = (each[5] for each in reversed(reading.records) if each[0] == _ENTRY and each[7] is None)
        return [_finding(name, agent, list(arguments), step, "a loop that nothing can end", next(around, ""))]
    return []


def _finding(rule: str, agent: str, frames: list[str], step: int, seen: str, place: str = "") -> Finding:
    source, expected = RULES[rule]
    place = place or next((frame for frame in frames if not frame.endswith(LEAF)), frames[0])
    place = _NAME.sub("", place.removesuffix(LEAF))
    way = f", called from {', '.join(frames[1:])}" if frames[1:] else ""
    return Finding(ORACLE, rule, source, agent, place, step, expected, f"{agent}: {seen}, at {frames[0]}{way}.")
