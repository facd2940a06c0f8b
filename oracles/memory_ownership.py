"""Memory is given back once, by whoever owns it, and not used afterwards.

* A *leak* is memory that a Supported(), a Start() that failed, a Stop() or an Unload() should have given back, and did
  not (UEFI 2.10 §11.1); what is due when is said in `holdings`.
* A *double free* is FreePool or FreePages of what was freed before (§7.2). A *foreign free* is that of memory that
  somebody else allocated for itself. A buffer that one image allocates while another one's code runs is handed over to
  that one, as a device path or a value of xenstore is; who frees it then is its owner.
* The *use after free* and the *overrun* are what the memory model saw (`Kind.MEMORY`). What the core uses after it was
  freed, as an interface is that is still installed, belongs to who owned it.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.holdings import book_of
from oracles.reading import PLATFORM_AGENTS, Reading, circumstances, tpl_name
from reference_impl.trace import Kind

ORACLE = "memory-ownership"

RULES = {
    "leak": Rule(
        "UEFI 2.10 §11.1",
        "A Supported(), a Start() that fails, a Stop() and an Unload() give back all memory that was taken for them.",
    ),
    "double-free": Rule("UEFI 2.10 §7.2", "Memory is freed once."),
    "foreign-free": Rule("UEFI 2.10 §7.2", "Memory is freed by its owner: who allocated it, or was given it."),
    "use-after-free": Rule("UEFI 2.10 §7.2", "Memory is not used after it was freed."),
    "overrun": Rule("UEFI 2.10 §7.2", "No more is written to a buffer than was allocated."),
}

_MEMORY = int(Kind.MEMORY)
_ALLOCATIONS = ("AllocatePool", "AllocatePages", "LocateHandleBuffer", "OpenProtocolInformation", "ProtocolsPerHandle")


def check(reading: Reading) -> list[Finding]:
    """Judge what was kept, and the misuse that the memory model saw."""
    findings = []
    for kept in book_of(reading).kept:
        if kept.holding.resource in ("pool", "pages"):
            service = reading.records[kept.holding.step][5]
            findings.append(_finding("leak", kept.agent, kept.subject(service), kept.entry.step, kept.story(reading)))
    for step in reading.steps_of(_MEMORY):
        _, agent, tpl, _, _, rule, (address, owner), _, _ = reading.records[step]
        culprit = owner if agent in PLATFORM_AGENTS else agent
        if culprit in PLATFORM_AGENTS or (rule == "foreign-free" and _was_handed_over(reading, step, address)):
            continue
        entry = reading.around[step]
        place = f"{tpl_name(tpl)}{circumstances(reading.records, step)}"
        seen = f"{agent} did this to memory of {owner} at {place}: {rule.replace('-', ' ')}."
        findings.append(_finding(rule, culprit, entry.name if entry else "driver", step, seen))
    return findings


def _was_handed_over(reading: Reading, step: int, address: int) -> bool:
    """Whether the memory that is freed in a step was allocated while the code ran that frees it now."""
    records = reading.records
    for allocation in reversed(reading.steps_of(*_ALLOCATIONS)):
        value = records[allocation][8]
        if allocation < step and (value == address or (isinstance(value, tuple) and value[0] == address)):
            entry = reading.around[allocation]
            return entry is not None and entry.agent == records[step][1]
    return False


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
