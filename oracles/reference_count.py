"""The bus's reference count is what the device drivers hold: each started device one reference, and nobody else any.

What a device driver promises by the counter-proposal of September 2019 to tianocore/edk2#9802 (AddReference just before
its Start() succeeds, RemoveReference in Stop() or, last of all, in its ExitBootServices notification), seen from the
bus's records (`Kind.REFERENCE`). The count belongs to one Start of the bus; each device is known by its node.

* *underflow*: the count falls below zero. Whoever removed has broken the count for everybody.
* *unbalanced*: a device takes a reference although it holds one, or gives one back that it does not hold, and the count
  hides it, because another device's reference goes or stays in its place.
* *leak*: a device holds a reference although its driver has let go of it: its Start() failed, its Stop() succeeded, the
  bus itself has stopped, or the operating system runs.

A reference belongs to the driver whose code added it.
"""

from __future__ import annotations

from typing import NamedTuple

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, Entry, Reading, circumstances, tpl_name, type_of
from reference_impl.trace import Kind

ORACLE = "reference-count"

_SOURCE = "XenBus hand-over (tianocore/edk2#9802): the counter-proposal of September 2019"

RULES = {
    "underflow": Rule(_SOURCE, "The reference count never falls below zero."),
    "unbalanced": Rule(_SOURCE, "A device adds a reference only while it holds none, and removes only its own."),
    "leak": Rule(
        _SOURCE,
        "A device whose driver does not manage it holds no reference, and none does when the operating system runs.",
    ),
}

_REFERENCE, _EXIT = int(Kind.REFERENCE), int(Kind.EXIT)
_ADD = "AddReference"


class _Reference(NamedTuple):
    """The reference of one device: the bus that counts it, who added it, in which step, and inside which entry."""

    bus: str
    agent: str
    step: int
    entry: Entry | None

    def ends_with(self, entry: Entry) -> bool:
        """Whether `entry`, a Start() that failed or a Stop(), is the end of it."""
        if entry.failed or self.entry is None:
            return entry is self.entry
        return entry.agent == self.bus or (entry.agent == self.agent and entry.controller == self.entry.controller)


def check(reading: Reading) -> list[Finding]:
    """Judge every change of the count, and what is left behind. A trace without references costs nothing."""
    if _REFERENCE not in reading.steps:
        return []
    findings = []
    held: dict[str, _Reference] = {}
    ends = [
        entry
        for entry in reading.entries_of("Start", "Stop")
        if entry.ends_managing or (entry.name == "Start" and entry.failed)
    ]
    for place in reading.merged(ends, _REFERENCE, _EXIT):
        if isinstance(place, Entry):
            left = [node for node, reference in held.items() if reference.ends_with(place)]
            findings += [_leak(node, held.pop(node), place.step, place.ending) for node in left]
            continue
        kind, bus, _, _, _, name, arguments, _, count = reading.records[place]
        if kind == _EXIT:
            if name == "runtime":
                findings += [_leak(node, held[node], place, "the operating system took over") for node in held]
            continue
        node = arguments[0]
        if name == _ADD:
            if node in held:
                findings.append(_broken(reading, "unbalanced", place, f"held one since step {held[node].step}"))
            held[node] = _Reference(bus, reading.who(place), place, reading.around[place])
        elif count < 0:
            findings.append(_broken(reading, "underflow", place, f"left the count at {count}"))
        elif held.pop(node, None) is None:
            findings.append(_broken(reading, "unbalanced", place, "held none"))
    return [finding for finding in findings if finding.agent not in PLATFORM_AGENTS]


def _broken(reading: Reading, rule: str, step: int, problem: str) -> Finding:
    _, _, tpl, _, _, name, arguments, _, _ = reading.records[step]
    place = f"{tpl_name(tpl)}{circumstances(reading.records, step)}"
    seen = f"{reading.who(step)} called {name} for {arguments[0]} at {place}, and {problem}."
    return _finding(rule, reading.who(step), arguments[0], step, seen)


def _leak(node: str, reference: _Reference, step: int, how: str) -> Finding:
    seen = f"{reference.agent} added a reference for {node} in step {reference.step}; {how}, and it is still held."
    return _finding("leak", reference.agent, node, step, seen)


def _finding(rule: str, agent: str, node: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, type_of(node), step, expected, seen)
