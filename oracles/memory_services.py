"""No memory service while EFI_EVENT_GROUP_EXIT_BOOT_SERVICES is notified, neither called nor inside another service.

UEFI 2.10 §7.1.1: the notification function of an event of type EVT_SIGNAL_EXIT_BOOT_SERVICES "must not" use the memory
services, directly or indirectly, since that could move the memory map that the loader has just fetched. What counts is
the use, not whether the map really moved: a pool call that is served from pages at hand breaks the rule as well.
In EFI_EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES all of it is allowed (§7.1.2); so it is in every other phase.

Four things are told apart:

* A *direct call* is a memory service called by driver code, at any depth: in Stop(), which runs in
  DisconnectController(), which the bus calls in its notification, it is still the call of the driver that is stopped.
  A call that fails is a call all the same: whether memory was left does not make it right.
* A service *allocates inside* where the core allocates for itself in it. It belongs to whoever called that service.
  A service that asked for memory and was refused counts as well.
* What runs inside the notification of a third party (a hostile environment) is that party's indirect use: a Stop() that it
  causes does not choose when it runs.
* A service that only *frees inside* is a note. Closing an event in its own notification is expressly legal (§7.1.3),
  and nothing can go wrong with the others but that the map moves.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, THIRD_PARTY, Reading, answer, circumstances, start_of, tpl_name
from reference_impl.trace import Kind, Phase, RecordTuple
from reference_impl.uefi.status import EfiStatus

ORACLE = "memory-services"

RULES = {
    "direct-call": Rule(
        "UEFI 2.10 §7.1.1", "No driver code calls a memory service while ExitBootServices notifications run."
    ),
    "allocates-inside": Rule(
        "UEFI 2.10 §7.1.1",
        "No driver code calls a service that allocates inside the core while ExitBootServices notifications run.",
    ),
    "frees-inside": Rule(
        "UEFI 2.10 §7.1.1, §7.1.3",
        "A service that only frees inside the core is better not called while ExitBootServices notifications run.",
    ),
}

MEMORY_SERVICES = frozenset({"AllocatePool", "FreePool", "AllocatePages", "FreePages", "GetMemoryMap"})

ALLOCATING_SERVICES = frozenset(
    {
        *("CreateEvent", "CreateEventEx", "RegisterProtocolNotify", "LoadImage"),
        *("InstallProtocolInterface", "InstallMultipleProtocolInterfaces", "OpenProtocol", "HandleProtocol"),
        *("OpenProtocolInformation", "ProtocolsPerHandle", "LocateHandleBuffer"),
        *("ConnectController", "DisconnectController"),
    }
)
"""Services that allocate inside edk2's core. Only where one of these answers EFI_OUT_OF_RESOURCES is it sure that it
asked for memory itself, and does not hand on what a driver's Start() or an image answered."""

_SERVICE, _CORE_MEMORY, _ENTRY = int(Kind.SERVICE), int(Kind.CORE_MEMORY), int(Kind.ENTRY)
_EXIT, _RUNTIME = int(Phase.EXIT), int(Phase.RUNTIME)


def check(reading: Reading) -> list[Finding]:
    """Judge what driver code did in phase EXIT: for each rule, agent and service the first step at which it shows."""
    records = reading.records
    steps: dict[tuple[str, str, str], int] = {}  # (rule, agent, service) → first record that shows it
    calls: dict[int, int] = {}  # depth → the last service call at that depth
    allocating: set[int] = set()  # calls in which the core allocated
    freeing: dict[int, tuple[int, str, str]] = {}  # call → the first thing that the core freed in it
    notifying: list[tuple[int, bool]] = []  # depths of the notifications that run now, and whether a third party's

    for index in range(start_of(records, _EXIT), start_of(records, _RUNTIME)):
        record = records[index]
        kind = record[0]
        if record[4] != _EXIT:
            continue  # between the attempts of a core that notifies in each of them
        while notifying and record[3] <= notifying[-1][0]:
            notifying.pop()
        if kind == _ENTRY and record[5] == "Notify":
            notifying.append((record[3], record[1] == THIRD_PARTY))
        if notifying and notifying[-1][1]:
            continue
        if kind == _SERVICE:
            calls[record[3]] = index
            agent, name = record[1], record[5]
            if agent in PLATFORM_AGENTS:
                continue
            if name in MEMORY_SERVICES:
                steps.setdefault(("direct-call", agent, name), index)
            elif name in ALLOCATING_SERVICES and record[7] == EfiStatus.OUT_OF_RESOURCES:
                steps.setdefault(("allocates-inside", agent, name), index)
        elif kind == _CORE_MEMORY and record[1] not in PLATFORM_AGENTS:
            agent, name = record[1], record[5]
            call = calls.get(record[3] - 1, -1)
            if record[6][0] == "allocate":
                allocating.add(call)
                steps.setdefault(("allocates-inside", agent, name), index)
            else:
                freeing.setdefault(call, (index, agent, name))

    for call, (index, agent, name) in freeing.items():
        if call not in allocating:
            steps.setdefault(("frees-inside", agent, name), index)
    return [_finding(records, *key, index) for key, index in steps.items()]


def _finding(records: list[RecordTuple], rule: str, agent: str, service: str, index: int) -> Finding:
    kind, _, tpl, _, _, _, arguments, status, _ = records[index]
    place = circumstances(records, index)
    if kind == _CORE_MEMORY:
        deed = f"allocated {arguments[1]} bytes" if rule == "allocates-inside" else "freed memory"
        seen = f"The core {deed} at {tpl_name(tpl)}{place}."
    else:
        seen = f"{service} by {agent} at {tpl_name(tpl)}{place}; {answer(status)}."
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, service, index, expected, seen, note=rule == "frees-inside")
