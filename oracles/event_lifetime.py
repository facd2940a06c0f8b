"""An event lives from its creation to its one CloseEvent, and no longer than the code that it notifies.

* A closed event is dead: no service may take it again (UEFI 2.10 §7.1.3). Closing it once more is told apart from using
  it. A notification that comes after the event was closed would be the core's fault.
* An event that a Supported(), a Start() that failed, a Stop() or an Unload() *leaves behind* goes on notifying code whose
  data are gone (§7.4.3, §11.1). What is due when is said in `holdings`.
* EFI_EVENT_GROUP_EXIT_BOOT_SERVICES and EFI_EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES are the firmware's to signal, each
  once (§7.4.6), and each member is notified once for it. Who signals a member signals the whole group, and answers for
  it; so does who has it signalled. An attempt to exit that signals the group anew, as a core of old does, is the
  environment's doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oracles.finding import Finding, Rule
from oracles.holdings import book_of
from oracles.reading import PLATFORM_AGENTS, Reading, answer, circumstances, tpl_name
from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import EVT_SIGNAL_EXIT_BOOT_SERVICES, EVT_TIMER
from reference_impl.uefi.status import EfiStatus

ORACLE = "event-lifetime"

RULES = {
    "double-close": Rule("UEFI 2.10 §7.1.3", "An event is closed once."),
    "use-after-close": Rule("UEFI 2.10 §7.1.3", "No service is called with an event that was closed."),
    "left-behind": Rule(
        "UEFI 2.10 §7.4.3, §11.1",
        "A Supported(), a Start() that fails, a Stop() and an Unload() close all events that were created for them.",
    ),
    "notified-twice": Rule(
        "UEFI 2.10 §7.4.6", "The notifications of ExitBootServices() run once each time that the firmware signals them."
    ),
}

_EXIT = int(Kind.EXIT)
_SIGNALS = {
    guids.EVENT_GROUP_EXIT_BOOT_SERVICES: "exit-group",
    guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES: "before-group",
}
"""Groups of ExitBootServices → the step in which the firmware signals them."""

_USES = ("SignalEvent", "CheckEvent", "SetTimer", "WaitForEvent", "RegisterProtocolNotify")


def check(reading: Reading) -> list[Finding]:
    """Judge every event from its creation on."""
    findings = [*_of_closed(reading), *_notified_twice(reading)]
    for kept in book_of(reading).kept:
        if kept.holding.resource == "event":
            subject = kept.subject(_sort_of(reading.records[kept.holding.step][6]))
            findings.append(_finding("left-behind", kept.agent, subject, kept.entry.step, kept.story(reading)))
    return findings


def _of_closed(reading: Reading) -> list[Finding]:
    """Services that are called with an event that its driver has closed. What somebody else closed is no fault of its."""
    records = reading.records
    findings = []
    closed: dict[int, int] = {}
    for step in reading.steps_of("CloseEvent", *_USES):
        _, agent, _, _, _, name, arguments, status, _ = records[step]
        if name == "CloseEvent" and status == EfiStatus.SUCCESS:
            closed[arguments[0]] = step
            continue
        for event in _events(name, arguments):
            if agent not in PLATFORM_AGENTS and event in closed and records[closed[event]][1] not in PLATFORM_AGENTS:
                rule = "double-close" if name == "CloseEvent" else "use-after-close"
                seen = (
                    f"{name} by {agent} at {tpl_name(records[step][2])}{circumstances(records, step)}; {answer(status)}. "
                    f"{records[closed[event]][1]} had closed the event in step {closed[event]}."
                )
                findings.append(_finding(rule, agent, name, step, seen))
    return findings


def _notified_twice(reading: Reading) -> list[Finding]:
    """Notifications of the groups of ExitBootServices beyond one for each time that the firmware signalled the group."""
    notified: dict[tuple[str, int], int] = {}
    findings = []
    for entry in sorted(
        [entry for entry in reading.entries_of("Notify") if entry.arguments[1] in _SIGNALS],
        key=lambda entry: entry.step,
    ):
        event, group = entry.arguments
        count = notified[group, event] = notified.get((group, event), 0) + 1
        signalled = [step for step in reading.steps_of(_EXIT) if reading.records[step][5] == _SIGNALS[group]]
        if count > sum(step < entry.step for step in signalled):
            agent, how = _who_signalled(reading, group, entry.step)
            if agent not in PLATFORM_AGENTS or agent == "DxeCore":
                seen = f"The notification of {entry.agent} was entered for the {_ORDINALS.get(count, f'{count}th')} time{how}."
                findings.append(_finding("notified-twice", agent, guids.NAMES[group], entry.step, seen))
    return findings


_SIGNALLING = (EfiStatus.SUCCESS, EfiStatus.NOT_READY, None)
"""Answers of services that may have signalled an event: of CheckEvent the second, of a wait without end the third."""

_ORDINALS = {1: "first", 2: "second", 3: "third"}


def _who_signalled(reading: Reading, group: str, before: int) -> tuple[str, str]:
    """Who signalled a member of the group last, or had it signalled, besides the firmware; the core itself if nobody did.

    A configuration table signals the group of its GUID (UEFI 2.10 §7.5.6). A timer, a registration for a protocol and a
    wait with EVT_NOTIFY_WAIT notify later, whenever their time comes: whoever asked for that answers for it.
    """
    records = reading.records
    members = {
        records[step][8]
        for step in reading.steps_of("CreateEvent", "CreateEventEx")
        if _group_of(records[step][6]) == group
    }
    for step in sorted(reading.steps_of("InstallConfigurationTable", *_USES), reverse=True):
        _, agent, _, _, _, name, arguments, status, _ = records[step]
        if step > before or status not in _SIGNALLING:
            continue
        meant = (
            (arguments[0] == group) if name == "InstallConfigurationTable" else members & {*_events(name, arguments)}
        )
        if meant:
            how = "had signalled the group" if name == "SignalEvent" else f"had called {name} for the group"
            return agent, f"; {agent} {how} in step {step}"
    return "DxeCore", ", and nobody had signalled the group again"


def _events(service: str, arguments: tuple[Any, ...]) -> Sequence[Any]:
    """The events that a service was called with."""
    if service == "WaitForEvent":
        events: Sequence[Any] = arguments[0]
        return events
    return arguments[1:2] if service == "RegisterProtocolNotify" else arguments[:1]


def _group_of(arguments: tuple[Any, ...]) -> str:
    """The group of an event, from the arguments of its creation."""
    if arguments[0] == EVT_SIGNAL_EXIT_BOOT_SERVICES:
        return guids.EVENT_GROUP_EXIT_BOOT_SERVICES
    group = arguments[4] if len(arguments) > 4 else ""
    return group if isinstance(group, str) else ""


def _sort_of(arguments: tuple[Any, ...]) -> str:
    """What sort of event it is, from the arguments of its creation: its group, "timer" or "event"."""
    group = _group_of(arguments)
    if group:
        return guids.NAMES.get(group, group)
    return "timer" if arguments[0] & EVT_TIMER else "event"


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
