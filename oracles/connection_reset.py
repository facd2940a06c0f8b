"""A connection to the hypervisor is reset exactly once in each generation, and before the operating system takes over.

The connection is the xenstore ring and the grant table; each is a resource of its own here. A generation begins when a
resource is taken into use (`Kind.CONNECTION`) and has a number that is not used again in the run; 0 is the time before
the first. "Once, after the last of the device drivers" is what every teardown design promises for the hand-over
(tianocore/edk2#9802; the designs `exit-callback` and `reference-count` of September 2019). Stop() of the bus is a legal
place for the reset, too: resets are counted wherever they come from.

A reset between two uses begins a new generation with the second use. So a driver that uses the connection once more
after the last reset shows here as a missed reset of its own.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, circumstances, tpl_name
from reference_impl.trace import Kind, RecordTuple, Trace

ORACLE = "connection-reset"

_SOURCE = "XenBus hand-over (tianocore/edk2#9802): exactly once per connection generation"

RULES = {
    "double-reset": Rule(_SOURCE, "Each resource of the connection is reset at most once in one generation."),
    "missed-reset": Rule(
        _SOURCE, "Each resource of the connection that was taken into use is reset before the operating system runs."
    ),
}

_CONNECTION, _RESET, _EXIT = int(Kind.CONNECTION), int(Kind.RESET), int(Kind.EXIT)
_KINDS = frozenset({_CONNECTION, _RESET, _EXIT})


def check(trace: Trace) -> list[Finding]:
    """Judge the resets of the whole run.

    A double reset is shown by the second reset and belongs to who made it, before or after the hand-over. A missed
    reset is shown by the step to the runtime phase and belongs to who took the resource into use. Where the exit failed
    or was never tried, no reset is missed.
    """
    records = trace.records
    findings = []
    resets: dict[tuple[str, int], int] = {}  # (resource, generation) → step of its first reset
    in_use: dict[str, tuple[int, int]] = {}  # resource → its latest generation and the step that began it, until reset
    for step in [step for step, record in enumerate(records) if record[0] in _KINDS]:
        kind, agent, _, _, _, name, arguments, _, _ = records[step]
        if kind == _EXIT:
            if name == "runtime":
                findings += [_missed(records, step, taken) for _, taken in in_use.values()]
        elif agent in PLATFORM_AGENTS:
            continue  # the operating system has connections of its own
        elif kind == _CONNECTION:
            in_use[name] = (arguments[0], step)
        else:
            first = resets.setdefault((name, arguments[0]), step)
            if first != step:
                findings.append(_double(records, first, step))
            if name in in_use and in_use[name][0] == arguments[0]:
                del in_use[name]
    return findings


def _double(records: list[RecordTuple], first: int, second: int) -> Finding:
    _, agent, tpl, _, _, resource, (generation,), _, _ = records[second]
    seen = (
        f"{agent} reset the {resource} of generation {generation} again at {tpl_name(tpl)}"
        f"{circumstances(records, second)}; {records[first][1]} had reset it in step {first}"
        f"{circumstances(records, first)}."
    )
    source, expected = RULES["double-reset"]
    return Finding(ORACLE, "double-reset", source, agent, resource, second, expected, seen)


def _missed(records: list[RecordTuple], runtime: int, taken: int) -> Finding:
    _, agent, _, _, _, resource, (generation,), _, _ = records[taken]
    seen = (
        f"{agent} took the {resource} into use in step {taken}, as generation {generation}, "
        "and nobody had reset it when the operating system took over."
    )
    source, expected = RULES["missed-reset"]
    return Finding(ORACLE, "missed-reset", source, agent, resource, runtime, expected, seen)
