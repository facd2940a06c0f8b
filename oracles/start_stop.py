"""Supported changes nothing, a Start that fails changes nothing, and a Stop gives everything back (UEFI 2.10 §11.1).

What is left behind is told by the family of what it is: memory, events and open protocols have their own. Here are the
published interfaces, and what the platform has lent: grants, event channels, pages of the hypervisor, watches, and a
front end that is up (`holdings` says what is due when).

    supported-changes     Supported() left something, or did what cannot be undone
    failed-start-leaves   a Start() or entry point that failed left something
    dangling-start        after a Start() that failed, another says that the driver has started already, and it has not
    stop-leaves           a Stop() or Unload() left something
    stop-lies             a Stop() answered success, and the driver still has open all by which it manages the controller
    restart-differs       what had been started and stopped does not start again, or takes something else, although
                          nothing else has happened

How the calls may come:

    stop-not-started      Stop() only where the driver manages the controller
    stop-wrong-children   Stop() is given children that the driver has opened BY_CHILD_CONTROLLER, and stops exactly them
    stop-reentered        a Stop() is not entered again from inside
    start-during-stop     no driver calls ConnectController for a controller that is just being stopped
    stop-during-exit      no driver disconnects while ExitBootServices notifications run: their providers may have shut
                          down, and Stop() frees (§7.1.1)
    entered-after-unload  an image whose Unload() has succeeded has left no driver binding behind: its code is gone, and
                          the next ConnectController would jump to where it was (§7.4.3)

Where the core calls Stop() as it must not, the finding is the core's (DxeCore). Whatever a third party causes by a call of
its own, at any depth of nesting, is nobody's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from oracles.finding import Finding, Rule
from oracles.holdings import LENT_BY_THE_PLATFORM, Book, Holding, Kept, book_of
from oracles.reading import PLATFORM_AGENTS, Entry, Reading, circumstances, tpl_name
from reference_impl.trace import Kind, Phase
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BY_DRIVER
from reference_impl.uefi.status import EfiStatus

ORACLE = "start-stop"

_SOURCE = "UEFI 2.10 §11.1"

RULES = {
    "supported-changes": Rule(_SOURCE, "Supported() changes nothing."),
    "failed-start-leaves": Rule(_SOURCE, "A Start() that fails leaves everything as it was."),
    "dangling-start": Rule(_SOURCE, "A driver whose Start() has failed can be asked to start again."),
    "stop-leaves": Rule(_SOURCE, "A Stop() gives back everything that the Start() has taken."),
    "stop-lies": Rule(_SOURCE, "A Stop() that answers success has ended managing the controller."),
    "restart-differs": Rule(_SOURCE, "After a Stop(), a Start() does what the first one did."),
    "stop-not-started": Rule(_SOURCE, "Stop() is called only on a controller that the driver has started."),
    "stop-wrong-children": Rule(_SOURCE, "Stop() is given children of the driver, and stops exactly these."),
    "stop-reentered": Rule(_SOURCE, "A Stop() that is under way is not entered again."),
    "start-during-stop": Rule(_SOURCE, "No driver connects a controller while it is being stopped."),
    "stop-during-exit": Rule(
        "UEFI 2.10 §7.1.1", "No driver disconnects a controller while ExitBootServices notifications run."
    ),
    "entered-after-unload": Rule("UEFI 2.10 §7.4.3", "A driver binding is gone once Unload() has succeeded."),
}

_CONNECTION, _RESET, _OPERATION, _INJECTED = (
    int(Kind.CONNECTION),
    int(Kind.RESET),
    int(Kind.OPERATION),
    int(Kind.INJECTED),
)
_EXIT = int(Phase.EXIT)
_OWN = LENT_BY_THE_PLATFORM | {"interface"}
_LEFT = {"Supported": "supported-changes", "Start": "failed-start-leaves", "EntryPoint": "failed-start-leaves"}

_FOR_GOOD = (
    *("WRITE", "UninstallProtocolInterface", "UninstallMultipleProtocolInterfaces", "ReinstallProtocolInterface"),
    *("ConnectController", "DisconnectController", _CONNECTION, _RESET),
)
"""What changes something for others at once, and cannot be undone."""

_UNCHANGED = frozenset({"connect", "disconnect", "request", "time", "allocate", "free", "exit", "load", "unload"})
"""Operations after which the platform is what it was."""


def check(reading: Reading) -> list[Finding]:
    """Judge what is left, then each Stop() and Start() in order."""
    book = book_of(reading)
    findings = [_left(reading, kept) for kept in book.kept if kept.holding.resource in _OWN]
    findings += _changes_of_supported(reading)
    findings += [
        _finding("stop-lies", entry.agent, "Stop", entry.step, f"{entry.ending}, and it still manages the controller.")
        for entry in book.lies
    ]
    findings += _children(book)
    lives = reading.entries_of("Start", "Stop")
    if lives:
        findings += _life(reading, book, lives)
        findings += _nesting(reading, lives)
        findings += _restarts(reading, book, lives)
    findings += _entered_after_unload(reading, book)
    return findings


def _left(reading: Reading, kept: Kept) -> Finding:
    holding = kept.holding
    what = holding.resource
    if what == "interface":
        protocol = holding.key[1]
        what = guids.NAMES.get(protocol, protocol)
    rule = _LEFT.get(kept.entry.name, "stop-leaves")
    return _finding(rule, kept.agent, what, kept.entry.step, kept.story(reading))


def _changes_of_supported(reading: Reading) -> Iterator[Finding]:
    records = reading.records
    for step in reading.steps_of(*_FOR_GOOD):
        entry = reading.around[step]
        if entry is not None and entry.name == "Supported" and entry.agent not in PLATFORM_AGENTS:
            name = records[step][5]
            place = f"{tpl_name(records[step][2])}{circumstances(records, step)}"
            yield _finding("supported-changes", entry.agent, name, step, f"{name} by {records[step][1]} at {place}.")


def _children(book: Book) -> Iterator[Finding]:
    for entry, left, others in book.children:
        if left or others:
            seen = f"{entry.ending} for {len(entry.arguments[1])} children"
            seen += f"; {len(left)} of them are still there" if left else ""
            seen += f"; {len(others)} others went with them" if others else ""
            yield _finding("stop-wrong-children", entry.agent, "children", entry.step, f"{seen}.")


def _life(reading: Reading, book: Book, lives: list[Entry]) -> Iterator[Finding]:
    """Which driver manages what, from Start() to Stop()."""
    records = reading.records
    managing: set[tuple[str, int]] = set()
    failed: set[str] = set()
    taken_away: set[tuple[str, int]] = set()  # by the environment, behind the core's back
    places = [(entry.step, entry) for entry in lives if entry.name == "Stop"]
    places += [(entry.end, entry) for entry in lives]
    lies = {entry.step for entry in book.lies}
    # What a driver has left open BY_DRIVER, the core takes for managed; that it was left is told by `protocol-usage`.
    left_open = {
        (kept.agent, kept.entry.controller)
        for kept in book.kept
        if kept.holding.resource == "open" and kept.holding.size & BY_DRIVER
    }
    for place, entry in sorted(places, key=lambda pair: (pair[0], pair[1].step)):
        key = entry.agent, entry.controller
        if entry.name == "Start":
            if entry.status == 0:
                managing.add(key)
                taken_away.discard(key)
            elif entry.status == EfiStatus.ALREADY_STARTED and key not in managing and entry.agent in failed:
                if not _inner_answer(reading, entry, EfiStatus.ALREADY_STARTED):
                    seen = f"{entry.ending}; it manages nothing there, and a Start() of it has failed before."
                    yield _finding("dangling-start", entry.agent, "Start", entry.step, seen)
            elif entry.failed:
                failed.add(entry.agent)
        elif place == entry.step:
            if not (key in managing or key in taken_away or key in left_open or entry.is_of_the_environment):
                seen = f"Stop() of {entry.agent} was entered{circumstances(records, entry.step)}, for what it does not manage."
                yield _finding("stop-not-started", "DxeCore", "Stop", entry.step, seen)
        elif entry.ends_managing and entry.step not in lies:
            managing.discard(key)
            if entry.is_of_the_environment:
                taken_away.add(key)


def _inner_answer(reading: Reading, entry: Entry, status: EfiStatus) -> bool:
    """Whether a call inside of the entry answered this status, which the entry then only handed on."""
    return any(record[7] == status for record in reading.records[entry.step + 1 : entry.end])


def _nesting(reading: Reading, lives: list[Entry]) -> Iterator[Finding]:
    """Stop() and Start() inside of other driver code."""
    records = reading.records
    for entry in lives:
        if entry.outer is None or entry.is_of_the_environment:
            continue
        stops = [
            around
            for around in entry.outer.outwards()
            if around.name == "Stop" and around.controller == entry.controller
        ]
        place = circumstances(records, entry.step)
        if entry.name == "Stop":
            if any(around.agent == entry.agent for around in stops):
                seen = f"Stop() of {entry.agent} was entered for the same controller{place}."
                yield _finding("stop-reentered", entry.outer.agent, "Stop", entry.step, seen)
            outermost = [*entry.outwards()][-1]
            if records[entry.step][4] == _EXIT:
                seen = f"Stop() of {entry.agent} was entered{place}."
                yield _finding("stop-during-exit", outermost.agent, "Stop", entry.step, seen)
        elif stops and _called_by(reading, entry) == "ConnectController":
            seen = f"Start() of {entry.agent} was entered{place}, and the controller was being stopped."
            yield _finding("start-during-stop", entry.outer.agent, "ConnectController", entry.step, seen)


def _called_by(reading: Reading, entry: Entry) -> str:
    """The service in which the core entered driver code that is inside of other driver code."""
    step = entry.step
    while reading.records[step][3] >= entry.depth:
        step -= 1
    return reading.records[step][5]


def _restarts(reading: Reading, book: Book, lives: list[Entry]) -> Iterator[Finding]:
    """Start, Stop and Start again on one controller, while nobody changed the platform or let a call fail."""
    records = reading.records
    changed = [
        step
        for step in reading.steps_of(_OPERATION, _INJECTED)
        if records[step][5] not in _UNCHANGED  # no call that can be made to fail has such a name
    ]
    until = changed[0] if changed else len(records)
    took = {entry.step: taken for entry, taken in book.starts}
    first: dict[tuple[str, int], Entry] = {}
    stopped: set[tuple[str, int]] = set()
    for entry in lives:
        if entry.end > until:
            break
        if entry.is_of_the_environment:
            continue
        if entry.ends_managing:
            stopped.add((entry.agent, entry.controller))
        elif entry.name == "Start" and entry.status is not None:
            key = entry.agent, entry.controller
            if key not in first:
                if entry.status == 0:
                    first[key] = entry
            elif key in stopped:
                before, after = _sorts(took[first[key].step]), _sorts(took.get(entry.step, []))
                if entry.failed or after != before:
                    difference = "it had succeeded" if entry.failed else f"it took {after} instead of {before}"
                    seen = f"{entry.ending} after a Stop(); {difference}, in step {first[key].step}."
                    yield _finding("restart-differs", entry.agent, "Start", entry.step, seen)


def _entered_after_unload(reading: Reading, book: Book) -> Iterator[Finding]:
    """The first entry into each driver binding whose image has unloaded itself, until the image is loaded again."""
    records = reading.records
    for unload in book.unloads:
        if unload.outer is not None:
            continue  # code of its own may still be under way
        agent = unload.agent
        loads = [step for step in reading.steps_of("LoadImage") if records[step][6][0] == agent]
        loads += [entry.step for entry in reading.entries_of("EntryPoint") if entry.agent == agent]
        until = min((step for step in loads if step > unload.step), default=len(records))
        for entry in reading.entries_of("Supported", "Start", "Stop"):
            if entry.agent == agent and unload.end <= entry.step < until and not entry.is_of_the_environment:
                seen = f"{entry.name}() of {agent} was entered{circumstances(records, entry.step)}, though {unload.ending}."
                yield _finding("entered-after-unload", agent, entry.name, entry.step, seen)
                break


def _sorts(holdings: list[Holding]) -> dict[str, int]:
    """How many of each sort of resource these are."""
    return dict(sorted(Counter(holding.resource for holding in holdings).items()))


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
