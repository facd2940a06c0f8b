"""Protocols are opened and closed in pairs, and what was uninstalled is gone.

* *left-open*: an open BY_DRIVER, BY_CHILD_CONTROLLER or EXCLUSIVE that a Supported(), a Start() that failed or a Stop()
  should have closed (UEFI 2.10 §11.1). The other attributes need no CloseProtocol (§7.3.9). What is due when is said in
  `holdings`.
* *child-left-open*: a child handle is gone while the bus has a protocol open for it BY_CHILD_CONTROLLER; now nobody can
  close that any more (§7.3.10).
* *cleanup-fails*: a call that gives something back is refused because there is nothing of that kind to give back: wrong
  arguments (§7.2, §7.3). That somebody still uses an interface (EFI_ACCESS_DENIED) is no such refusal, and what is
  closed or freed twice has rules of its own.
* *closed-interface*: a driver installs a protocol on a handle, or opens one to keep, after the handle's last protocol
  was uninstalled (§7.3.3). Only to ask about such a handle is harmless: who walks through a list of all handles may
  meet one that has gone meanwhile.
"""

from __future__ import annotations

from typing import Any

from oracles.finding import Finding, Rule
from oracles.holdings import LASTING_OPENS, Book, book_of
from oracles.reading import PLATFORM_AGENTS, Entry, Reading, answer, circumstances, injected, tpl_name
from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.status import EfiStatus

ORACLE = "protocol-usage"

RULES = {
    "left-open": Rule(
        "UEFI 2.10 §11.1",
        "A Supported(), a Start() that fails and a Stop() close the protocols that were opened for them.",
    ),
    "child-left-open": Rule(
        "UEFI 2.10 §7.3.10", "A protocol that is open for a child controller is closed before the child's handle goes."
    ),
    "cleanup-fails": Rule(
        "UEFI 2.10 §7.2, §7.3",
        "What is closed, freed or uninstalled was open, allocated or installed in just that way.",
    ),
    "closed-interface": Rule(
        "UEFI 2.10 §7.3.3", "Nothing is installed or kept open on a handle after its last protocol was uninstalled."
    ),
}

_MEMORY = int(Kind.MEMORY)
_CLEANUP = (
    *("CloseProtocol", "CloseEvent", "FreePool", "FreePages"),
    *("UninstallProtocolInterface", "UninstallMultipleProtocolInterfaces"),
)
_INSTALLATIONS = ("InstallProtocolInterface", "InstallMultipleProtocolInterfaces")
_WRONG_ARGUMENTS = (EfiStatus.INVALID_PARAMETER, EfiStatus.NOT_FOUND)


def check(reading: Reading) -> list[Finding]:
    """Judge what is left open, what cannot be given back, and what is gone."""
    records = reading.records
    book = book_of(reading)
    findings = []
    for kept in book.kept:
        if kept.holding.resource == "open":
            subject = kept.subject(_protocol(kept.holding.key[1]))
            findings.append(_finding("left-open", kept.agent, subject, kept.entry.step, kept.story(reading)))
    for holding, step in book.orphans:
        seen = (
            f"{holding.agent} opened {_protocol(holding.key[1])} BY_CHILD_CONTROLLER in step {holding.step}; in step {step} "
            "the last protocol of that child was uninstalled, and nobody had closed it."
        )
        findings.append(_finding("child-left-open", holding.agent, _protocol(holding.key[1]), step, seen))
    for step in reading.steps_of(*_CLEANUP):
        record = records[step]
        if (
            record[7] in _WRONG_ARGUMENTS
            and record[1] not in PLATFORM_AGENTS
            and not injected(records, step)
            and not _is_known_otherwise(book, reading, step)
        ):
            findings.append(_finding("cleanup-fails", record[1], record[5], step, _told(reading, step)))
    for step in reading.steps_of("OpenProtocol", *_INSTALLATIONS) if book.gone else ():
        _, agent, _, _, _, name, arguments, _, _ = records[step]
        gone = book.gone.get(arguments[0], step)
        if (
            gone < step
            and agent not in PLATFORM_AGENTS
            and (name in _INSTALLATIONS or arguments[4] & LASTING_OPENS)
            and not _was_asked_about(reading.around[step], arguments[0])
        ):
            seen = f"{_told(reading, step)} The handle had lost its last protocol in step {gone}."
            findings.append(_finding("closed-interface", agent, name, step, seen))
    return findings


def _was_asked_about(entry: Entry | None, handle: int) -> bool:
    """Whether the caller of Supported() or Start() named the handle: then it is the caller that goes on with it."""
    return entry is not None and entry.name in ("Supported", "Start") and entry.controller == handle


def _told(reading: Reading, step: int) -> str:
    _, agent, tpl, _, _, name, _, status, _ = reading.records[step]
    return f"{name} by {agent} at {tpl_name(tpl)}{circumstances(reading.records, step)}; {answer(status)}."


def _is_known_otherwise(book: Book, reading: Reading, step: int) -> bool:
    """Whether another rule says why the call was refused, or the trace does not say that the arguments were wrong."""
    records = reading.records
    _, _, _, depth, _, name, arguments, _, _ = records[step]
    if name == "CloseEvent":
        return any(
            records[close][6] == arguments and records[close][7] == EfiStatus.SUCCESS
            for close in reading.steps_of("CloseEvent")
            if close < step
        )
    if name in ("FreePool", "FreePages"):
        return step + 1 < len(records) and records[step + 1][0] == _MEMORY and records[step + 1][3] > depth
    if name == "CloseProtocol":
        return any(orphan.key == arguments for orphan, _ in book.orphans)
    if name == "UninstallMultipleProtocolInterfaces":
        return step in book.held
    return False


def _protocol(guid: Any) -> str:
    """A protocol by its name, or by its GUID where it has none here."""
    return guids.NAMES.get(guid, str(guid))


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
