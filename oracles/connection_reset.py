"""A connection to the hypervisor is reset once in each generation, after its last use, and before the hand-over.

The connection is the xenstore ring and the grant table; each is a resource of its own here. A generation begins when a
resource is taken into use (`Kind.CONNECTION`) and has a number that is not used again in the run; 0 is the time before
the first. "Once, after the last of the device drivers" is what every teardown design promises for the hand-over
(tianocore/edk2#9802; the designs `exit-callback` and `reference-count` of September 2019). Stop() of the bus is a legal
place for the reset, too: resets are counted wherever they come from.

* A reset is *premature* while the front end of a device is Initialised or Connected: its driver has not told the peer
  to close, so it still needs the connection, and the peer still writes to its pages. A front end on its way through the
  closing states has done its part; whether its peer has followed is the hand-over's question.
* A *use after* the reset is one outside of a Start() (or the entry point) of the driver that owns the connection: only
  there may a new generation begin. Nobody is blamed once more for not resetting what was used in that way.
"""

from __future__ import annotations

from oracles.finding import Finding, Rule
from oracles.reading import PLATFORM_AGENTS, Reading, circumstances, tpl_name
from reference_impl.trace import Kind, RecordTuple

ORACLE = "connection-reset"

_SOURCE = "XenBus hand-over (tianocore/edk2#9802): exactly once per connection generation"

RULES = {
    "double-reset": Rule(_SOURCE, "Each resource of the connection is reset at most once in one generation."),
    "missed-reset": Rule(
        _SOURCE, "Each resource of the connection that was taken into use is reset before the operating system runs."
    ),
    "premature-reset": Rule(
        "XenBus hand-over (tianocore/edk2#9802): after the last of the device drivers",
        "The connection is not reset while a device is still connected to its peer.",
    ),
    "use-after-reset": Rule(
        "XenBus hand-over (tianocore/edk2#9802): after the last of the device drivers",
        "The connection is not used after its reset, unless a Start() of its owner begins it anew.",
    ),
}

_CONNECTION, _RESET, _EXIT = int(Kind.CONNECTION), int(Kind.RESET), int(Kind.EXIT)
_XENBUS_STATE, _GRANT = int(Kind.XENBUS_STATE), int(Kind.GRANT)
_CONNECTED_STATES = (3, 4)  # Initialised, Connected (Xen io/xenbus.h)
_TABLE_IS_GONE = "table not in the physmap"


def check(reading: Reading) -> list[Finding]:
    """Judge the resets of the whole run.

    A double reset is shown by the second reset and belongs to who made it, before or after the hand-over. A missed
    reset is shown by the step to the runtime phase and belongs to who took the resource into use. Where the exit failed
    or was never tried, no reset is missed. A premature reset belongs to who made it, a use after the reset to the
    driver whose code ran.
    """
    records = reading.records
    findings = []
    resets: dict[tuple[str, int], int] = {}  # (resource, generation) → step of its first reset
    last_reset: dict[str, int] = {}  # resource → step of the last reset of a generation that was in use
    in_use: dict[str, tuple[int, int]] = {}  # resource → its latest generation and the step that began it, until reset
    connected: dict[str, int] = {}  # device whose front end is Initialised or Connected → since which step
    for step in reading.steps_of(_CONNECTION, _RESET, _EXIT, _XENBUS_STATE, "grant", "end"):
        kind, agent, _, _, _, name, arguments, status, _ = records[step]
        if kind == _XENBUS_STATE:
            if arguments[1] in _CONNECTED_STATES:
                connected.setdefault(name, step)
            else:
                connected.pop(name, None)
        elif kind == _EXIT:
            if name == "runtime":
                findings += [_missed(records, step, taken) for _, taken in in_use.values()]
        elif agent in PLATFORM_AGENTS:
            continue  # the operating system has connections of its own
        elif kind == _GRANT:
            if status == _TABLE_IS_GONE and "grant-table" in last_reset:
                findings.append(_used(reading, step, "grant-table", last_reset["grant-table"]))
        elif kind == _CONNECTION:
            if name in last_reset and not _begins_anew(reading, step):
                findings.append(_used(reading, step, name, last_reset[name]))
            else:
                in_use[name] = (arguments[0], step)
        else:
            first = resets.setdefault((name, arguments[0]), step)
            if first != step:
                findings.append(_double(records, first, step))
            elif connected:
                findings.append(_premature(records, step, connected))
            if arguments[0]:
                last_reset[name] = step
            if name in in_use and in_use[name][0] == arguments[0]:
                del in_use[name]
    return findings


def _begins_anew(reading: Reading, step: int) -> bool:
    """Whether the owner of the connection is inside its own Start() or entry point."""
    agent, entry = reading.records[step][1], reading.around[step]
    return entry is not None and any(
        around.agent == agent and around.name in ("Start", "EntryPoint") for around in entry.outwards()
    )


def _double(records: list[RecordTuple], first: int, second: int) -> Finding:
    _, agent, tpl, _, _, resource, (generation,), _, _ = records[second]
    seen = (
        f"{agent} reset the {resource} of generation {generation} again at {tpl_name(tpl)}"
        f"{circumstances(records, second)}; {records[first][1]} had reset it in step {first}"
        f"{circumstances(records, first)}."
    )
    return _finding("double-reset", agent, resource, second, seen)


def _missed(records: list[RecordTuple], runtime: int, taken: int) -> Finding:
    _, agent, _, _, _, resource, (generation,), _, _ = records[taken]
    seen = (
        f"{agent} took the {resource} into use in step {taken}, as generation {generation}, "
        "and nobody had reset it when the operating system took over."
    )
    return _finding("missed-reset", agent, resource, runtime, seen)


def _premature(records: list[RecordTuple], step: int, connected: dict[str, int]) -> Finding:
    _, agent, tpl, _, _, resource, (generation,), _, _ = records[step]
    devices = ", ".join(f"{device} (since step {since})" for device, since in connected.items())
    seen = (
        f"{agent} reset the {resource} of generation {generation} at {tpl_name(tpl)}{circumstances(records, step)}, "
        f"while still connected: {devices}."
    )
    return _finding("premature-reset", agent, resource, step, seen)


def _used(reading: Reading, step: int, resource: str, reset: int) -> Finding:
    records = reading.records
    agent = reading.who(step)
    seen = (
        f"{agent} used the {resource} at {tpl_name(records[step][2])}{circumstances(records, step)}; "
        f"{records[reset][1]} had reset it in step {reset}{circumstances(records, reset)}."
    )
    return _finding("use-after-reset", agent, resource, step, seen)


def _finding(rule: str, agent: str, resource: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, resource, step, expected, seen)
