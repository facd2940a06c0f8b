"""Task priority levels go up and down in pairs, and a service is called where it may be (UEFI 2.10 §7.1).

* An entry point returns at the level at which it was entered (*not-restored*). Where one inside of it has returned at
  another one, the outer one cannot know.
* RaiseTPL never lowers (*raise-lowers*, §7.1.8), RestoreTPL never raises (*restore-raises*, §7.1.9).
* A service is *too-high* above the level that the table of TPL restrictions in §7.1 gives it (`LIMITS`). A driver that was
  entered above TPL_NOTIFY did not choose to be there.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, Reading, answer, circumstances, tpl_name
from reference_impl.trace import Kind
from reference_impl.uefi.definitions import TPL_APPLICATION, TPL_CALLBACK, TPL_HIGH_LEVEL, TPL_NOTIFY

ORACLE = "tpl"

RULES = {
    "not-restored": Rule("UEFI 2.10 §7.1", "A function returns at the TPL at which it was called."),
    "raise-lowers": Rule("UEFI 2.10 §7.1.8", "RaiseTPL() is called with the current TPL or a higher one."),
    "restore-raises": Rule("UEFI 2.10 §7.1.9", "RestoreTPL() is called with the current TPL or a lower one."),
    "too-high": Rule("UEFI 2.10 §7.1", "No service is called above the TPL that it allows."),
}

LIMITS = {
    **dict.fromkeys(("ExitBootServices", "WaitForEvent", "LoadImage", "StartImage"), TPL_APPLICATION),
    "UnloadImage": TPL_CALLBACK,
    **dict.fromkeys(("CreateEvent", "CreateEventEx", "CloseEvent", "CheckEvent", "SetTimer"), TPL_HIGH_LEVEL - 1),
    **dict.fromkeys(("SignalEvent", "RaiseTPL", "RestoreTPL", "Stall"), TPL_HIGH_LEVEL),
}
"""Service → the highest TPL at which it may be called. All others: TPL_NOTIFY. LoadImage and StartImage are allowed below
TPL_CALLBACK, four events' services below TPL_HIGH_LEVEL."""

_SERVICE = int(Kind.SERVICE)


def check(reading: Reading) -> list[Finding]:
    """Judge every entry point and every service of drivers."""
    records = reading.records
    findings = []
    explained: set[int] = set()  # entries around one that has left the level wrong
    for entry in reading.entries:
        if entry.returned is None:
            continue
        if entry.step not in explained and entry.agent not in PLATFORM_AGENTS:
            place = circumstances(records, entry.step)
            seen = (
                f"{entry.agent} entered {entry.name} at {tpl_name(records[entry.step][2])}{place}, "
                f"and returned at {tpl_name(entry.returned)}."
            )
            findings.append(_finding("not-restored", entry.agent, entry.name, entry.step, seen))
        explained.update(around.step for around in entry.outwards())
    limits = LIMITS
    told: set[tuple[str, str, str]] = set()  # a wait that polls breaks a rule thousands of times
    for step in [
        step
        for step, record in enumerate(records)
        if record[0] == _SERVICE
        and (
            record[6][0] < record[2]
            if record[5] == "RaiseTPL"
            else record[6][0] > record[2]
            if record[5] == "RestoreTPL"
            else record[2] > TPL_APPLICATION and record[2] > limits.get(record[5], TPL_NOTIFY)
        )
    ]:
        _, agent, _, _, _, name, _, _, _ = records[step]
        rule = {"RaiseTPL": "raise-lowers", "RestoreTPL": "restore-raises"}.get(name, "too-high")
        if agent in PLATFORM_AGENTS or (rule, agent, name) in told:
            continue
        if rule != "too-high" or not _was_entered_too_high(reading, step):
            told.add((rule, agent, name))
            findings.append(_finding(rule, agent, name, step, _told(reading, step)))
    return findings


def _was_entered_too_high(reading: Reading, step: int) -> bool:
    """Whether the driver code around a step was entered above TPL_NOTIFY."""
    entry = reading.entry_at(step)
    return entry is not None and reading.records[entry.step][2] > TPL_NOTIFY


def _told(reading: Reading, step: int) -> str:
    _, agent, tpl, _, _, name, arguments, status, _ = reading.records[step]
    called = f"{name}({tpl_name(arguments[0])})" if name in ("RaiseTPL", "RestoreTPL") else name
    return f"{called} by {agent} at {tpl_name(tpl)}{circumstances(reading.records, step)}; {answer(status)}."


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
