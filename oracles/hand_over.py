"""The operating system can take over the machine, and nothing of the firmware is alive in it any more.

The evidence is the operating system itself: after a successful ExitBootServices it takes over memory map, xenstore,
grant table, event channels and each device from scratch, and records what is in its way (`Kind.TAKE_OVER`). The rules
are named for the step that failed:

* The memory map that the loader fetched is the one that holds (UEFI 2.10 §7.4.6). The key is checked before the
  notifications run and never again, so a map that moved in them is found here only. It belongs to whose call moved it.
* The xenstore ring starts a new conversation: indices in step, no answer to somebody else's request (Xen,
  io/xs_wire.h).
* The grant table can be placed anew, and no backend holds a grant or an event channel of the firmware (Xen,
  grant_table.h and event_channel.h).
* Each backend comes to a state from which it connects, and serves a request (Xen, io/xenbus.h).

Besides, no driver calls a boot service once the operating system runs (§7.4.6). A failure counts once for each kind of
device, however many of them there are.
"""

from __future__ import annotations

from typing import Any

from oracles.finding import Finding, Rule
from oracles.reading import (
    PLATFORM_AGENTS,
    THIRD_PARTY,
    Reading,
    answer,
    circumstances,
    notifier_of,
    start_of,
    tpl_name,
    type_of,
)
from reference_impl.trace import Kind, Phase, RecordTuple

ORACLE = "hand-over"

RULES = {
    "memory-map": Rule(
        "UEFI 2.10 §7.4.6", "The memory map that the loader fetched still holds when the operating system runs."
    ),
    "store": Rule("Xen io/xs_wire.h", "The operating system can begin a xenstore conversation of its own."),
    "grant-table": Rule("Xen grant_table.h", "The operating system can place a grant table of its own."),
    "grant-left": Rule("Xen grant_table.h", "No backend holds a grant of the firmware when the operating system runs."),
    "event-channel-left": Rule(
        "Xen event_channel.h", "No event channel of the firmware is open when the operating system runs."
    ),
    "device": Rule("Xen io/xenbus.h", "The operating system can connect to each device and have a request served."),
    "service-after-exit": Rule(
        "UEFI 2.10 §7.4.6", "No driver code calls a boot service after ExitBootServices has returned."
    ),
}

_SERVICE, _MAP_KEY, _TAKE_OVER = int(Kind.SERVICE), int(Kind.MAP_KEY), int(Kind.TAKE_OVER)
_EXIT, _RUNTIME = int(Phase.EXIT), int(Phase.RUNTIME)


def check(reading: Reading) -> list[Finding]:
    """Judge what happened from the runtime phase on. Nothing is judged where the exit failed or was never tried."""
    records = reading.records
    findings = []
    store_failed = False
    for step in range(start_of(records, _RUNTIME), len(records)):
        kind, agent, tpl, _, _, name, arguments, status, responsible = records[step]
        if kind == _TAKE_OVER:
            if status == "OK":
                continue
            rule, subject = _rule_and_subject(name, arguments)
            if rule == "memory-map":
                responsible = _who_moved_the_map(records)
            elif rule == "store":
                store_failed = True
            elif rule == "device" and store_failed and not responsible:
                continue  # without a store no device is reached: that is the store's finding, and nobody else's fault
            if responsible and responsible in PLATFORM_AGENTS:
                continue
            place = f" ({', '.join(map(str, arguments))})" if arguments else ""
            seen = f"The operating system cannot take over {name}{place}: {status}."
            findings.append(_finding(rule, responsible or "firmware", subject, step, seen))
        elif kind == _SERVICE and agent not in PLATFORM_AGENTS:
            place = circumstances(records, step)
            seen = f"{name} by {agent} at {tpl_name(tpl)}{place}, when ExitBootServices was done; {answer(status)}."
            findings.append(_finding("service-after-exit", agent, name, step, seen))
    return findings


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)


def _rule_and_subject(name: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """Which rule a step of the operating system is about, and the resource or the type of device.

    What a backend holds is recorded under the resource, with the number of the grant or port and the device's path.
    """
    if name in ("grant-table", "event-channel") and len(arguments) == 2:
        return ("grant-left" if name == "grant-table" else "event-channel-left"), type_of(arguments[1])
    if name in RULES:
        return name, name
    return "device", type_of(name)


def _who_moved_the_map(records: list[RecordTuple]) -> str:
    """Whose call moved the memory map first, after the key was checked; "" where the trace does not tell.

    Inside a third party's notification everything is its doing.
    """
    mover = ""
    for step in range(start_of(records, _RUNTIME) - 1, -1, -1):
        record = records[step]
        if record[4] != _EXIT:
            break
        if record[0] == _MAP_KEY:
            mover = THIRD_PARTY if notifier_of(records, step) == THIRD_PARTY else record[1]
    return mover
