"""Whoever waits does so for something that can still come, for a bounded time, and not where nobody may wait.

* *no-progress*: a wait for what nobody will signal any more (UEFI 2.10 §7.1.5). The run ends there; so it does for a poll
  of a timer once ExitBootServices has turned timers off, on which no notification may rely (§7.1.1, §7.4.6).
* *unbounded-poll*: a driver asks again and again until the run has used up its budget of steps, because a peer does not
  answer. It has to give up some time: the loader cannot (§7.1.1). One that goes on to the next device has given up.
* *nesting*: notifications, or calls and entries, nest without bound, until the stack of real firmware is used up (§7.1.4).
* *blocks-at-notify*: a driver waits at TPL_NOTIFY or above, where no blocking is allowed (§7.1). One that was entered
  there by somebody else did not choose to, unless it is a notification that was asked for at that level.

A run that is simply long uses up its steps as well. That is nobody's fault: some driver's entry must hold most of them.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, Entry, Reading, circumstances, tpl_name
from reference_impl.trace import Kind, Phase
from reference_impl.uefi.definitions import TPL_NOTIFY
from reference_impl.uefi.status import EfiStatus

ORACLE = "waiting"

RULES = {
    "no-progress": Rule("UEFI 2.10 §7.1.1, §7.1.5, §7.4.6", "A driver waits only for what can still come."),
    "unbounded-poll": Rule("UEFI 2.10 §7.1.1", "A driver gives up in the end where nobody answers."),
    "nesting": Rule("UEFI 2.10 §7.1.4", "Notifications and calls do not nest without bound."),
    "blocks-at-notify": Rule("UEFI 2.10 §7.1", "No driver blocks at TPL_NOTIFY."),
}

DEPTH_MAX = 64
"""Nesting beyond this is no driver's intention. The deepest of correct runs are below 20."""

BLOCKING_US = 1_000
"""Microseconds of Stall() in one entry that count as blocking: a lock's spin is far below, a wait for a peer above."""

POLLS_MAX = 16
"""Polls of one event without an answer, after which they count as a wait."""

_STUCK, _EXIT = int(Kind.STUCK), int(Phase.EXIT)
_TIMER_CANCEL = 0


def check(reading: Reading) -> list[Finding]:
    """Judge how the run got stuck, if it did, and the polls and stalls of drivers."""
    return [*_stuck(reading), *_timers(reading), *_blocking(reading)]


def _stuck(reading: Reading) -> list[Finding]:
    records = reading.records
    findings = []
    for step in reading.steps_of(_STUCK):
        _, agent, tpl, depth, _, name, arguments, _, _ = records[step]
        entry = reading.around[step]
        if agent in PLATFORM_AGENTS:  # the core's own work, for the driver whose code runs
            agent = entry.agent if entry is not None else ""
        if agent in PLATFORM_AGENTS:
            continue
        rule = name
        subject = arguments[0] if arguments else name
        if name == "dead-loop":
            continue  # the oracle guest-fault tells it
        if name in ("step-budget", "endless-wait"):
            if depth > DEPTH_MAX:
                rule = "nesting"
            elif _polls_a_dead_timer(reading):
                continue
            elif (holder := _holder_of_most(reading, entry, step)) is not None:
                # A loop is known by what it keeps from coming back: the budget may run out in any of its calls.
                rule, subject = "unbounded-poll", holder.name
            elif name == "endless-wait":
                rule = "unbounded-poll"
            else:
                continue
        called = f" in {arguments[0]}" if arguments else ""
        place = f"{tpl_name(tpl)}{circumstances(records, step)}"
        seen = f"{agent} came to no end{called} at {place}, and the run was ended after {step} steps: {name}."
        findings.append(_finding(rule, agent, subject, step, seen))
    return findings


def _holder_of_most(reading: Reading, entry: Entry | None, step: int) -> Entry | None:
    """The innermost entry of a driver, from `entry` outwards, in which more than half of the run passed at a stretch.

    A stretch ends where driver code inside of it, at any depth, came back: that one waited, but not for ever.
    Notifications are none of its doing.
    """
    came_back = [inner for inner in reading.entries if inner.end <= step and inner.name != "Notify"]
    for around in entry.outwards() if entry is not None else ():
        since = max((inner.end for inner in came_back if inner.step > around.step), default=around.step)
        if 2 * (step - since) > step:
            return around
    return None


def _timers(reading: Reading) -> list[Finding]:
    """Polls of armed timers while the EXIT group is notified."""
    records = reading.records
    findings = []
    for steps in _polls_of_timers(reading).values():
        if len(steps) > POLLS_MAX:
            step = steps[0]
            agent, tpl = records[step][1:3]
            place = f"{tpl_name(tpl)}{circumstances(records, step)}"
            seen = f"{agent} polled a timer {len(steps)} times from here on at {place}, and timers are off."
            findings.append(_finding("no-progress", agent, "timer", step, seen))
    return findings


def _polls_of_timers(reading: Reading) -> dict[int, list[int]]:
    """Event whose timer is armed → the steps at which a driver found it not signalled in phase EXIT."""
    polls: dict[int, list[int]] = {}
    if "SetTimer" in reading.steps:
        armed: set[int] = set()
        for step in reading.steps_of("SetTimer", "CheckEvent"):
            _, agent, _, _, phase, name, arguments, status, _ = reading.records[step]
            event = arguments[0]
            if name == "SetTimer":
                (armed.discard if arguments[1] == _TIMER_CANCEL else armed.add)(event)
            elif phase == _EXIT and event in armed and status == EfiStatus.NOT_READY and agent not in PLATFORM_AGENTS:
                polls.setdefault(event, []).append(step)
    return polls


def _polls_a_dead_timer(reading: Reading) -> bool:
    return any(len(steps) > POLLS_MAX for steps in _polls_of_timers(reading).values())


def _blocking(reading: Reading) -> list[Finding]:
    """Stalls and polls at TPL_NOTIFY and above, entry by entry."""
    records = reading.records
    spent: dict[Entry, int] = {}
    findings = []
    for step in reading.steps_of("Stall", "CheckEvent"):
        _, agent, tpl, _, _, name, arguments, status, _ = records[step]
        entry = reading.around[step]
        if tpl < TPL_NOTIFY or entry is None or agent in PLATFORM_AGENTS:
            continue
        if name == "CheckEvent" and status != EfiStatus.NOT_READY:
            continue
        if records[entry.step][2] >= TPL_NOTIFY and not _asked_for(reading, entry):
            continue
        before = spent.get(entry, 0)
        spent[entry] = before + (arguments[0] if name == "Stall" else BLOCKING_US // POLLS_MAX)
        if before <= BLOCKING_US < spent[entry]:
            place = f"{tpl_name(tpl)}{circumstances(records, step)}"
            findings.append(_finding("blocks-at-notify", agent, name, step, f"{agent} waited by {name} at {place}."))
    return findings


def _asked_for(reading: Reading, entry: Entry) -> bool:
    """Whether an entry is a notification of an event that was created for TPL_NOTIFY or above."""
    if entry.name != "Notify":
        return False
    for step in reading.steps_of("CreateEvent", "CreateEventEx"):
        record = reading.records[step]
        if record[8] == entry.arguments[0]:
            return bool(record[6][1] >= TPL_NOTIFY)
    return True


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
