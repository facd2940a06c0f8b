"""What becomes of a scenario does not depend on the order in which notifications of one group run.

UEFI 2.10 §7.1.1 leaves the order among notifications of the same TPL open, and a notification must not rely on it. One
run alone shows nothing: here the verdicts and final states of several runs of one scenario are compared, which differ in
nothing but `Scenario.order`; `fuzz_targets.harness.run_in_orders` makes them.

* *verdict-differs*: a rule is broken by an agent under some of the orders, and not under others. The finding names them.
* *state-differs*: all verdicts agree, and yet the machine is not handed over in the same state: what the operating system
  could take over, the state of each front end that is there, how often each resource was reset, the reference count.
  Indices of rings, grant references, addresses and the order of what happened may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from oracles.finding import Finding, Rule
from reference_impl.trace import Kind, Trace

ORACLE = "order-independence"

RULES = {
    "verdict-differs": Rule("UEFI 2.10 §7.1.1", "The same rules are kept whatever the order of notifications is."),
    "state-differs": Rule("UEFI 2.10 §7.1.1", "The machine is handed over in the same state in every order."),
}

Order = str | tuple[int, ...]

_GONE = 0  # XenbusState of a front end without a node: when a removal is over is up to the device's backend
_EXIT, _RESET, _REFERENCE = int(Kind.EXIT), int(Kind.RESET), int(Kind.REFERENCE)
_XENBUS_STATE, _TAKE_OVER = int(Kind.XENBUS_STATE), int(Kind.TAKE_OVER)


class Run(NamedTuple):
    """One of the runs that are compared."""

    order: Order
    trace: Trace
    findings: Iterable[Finding]


def compare(runs: list[Run]) -> list[Finding]:
    """Judge runs of one scenario; steps are those of the first."""
    step = next((at for at, record in enumerate(runs[0].trace.records) if record[0] == _EXIT), 0)
    broken: dict[tuple[str, str, str], list[Order]] = {}
    for run in runs:
        for finding in run.findings:
            orders = broken.setdefault((finding.agent, finding.oracle, finding.rule), [])
            if not finding.note and run.order not in orders:
                orders.append(run.order)
    findings = []
    for (agent, oracle, rule), orders in broken.items():
        if 0 < len(orders) < len(runs):
            seen = f"{agent} breaks {oracle}/{rule} under {_names(orders)}, and not under {_others(runs, orders)}."
            findings.append(_finding("verdict-differs", agent, rule, step, seen))
    return findings or _states(runs, step)


def _states(runs: list[Run], step: int) -> list[Finding]:
    first, *others = [(run.order, final_state(run.trace)) for run in runs]
    findings = []
    for order, state in others:
        for what in sorted({*first[1], *state}):
            values = first[1].get(what), state.get(what)
            gone = what.startswith("front-end ") and _GONE in values
            if values[0] != values[1] and not gone:
                seen = f"{what} is {values[0]} under {_name(first[0])}, and {values[1]} under {_name(order)}."
                findings.append(_finding("state-differs", "firmware", what.partition(" ")[0], step, seen))
    return findings


def final_state(trace: Trace) -> Mapping[str, object]:
    """What must not depend on the order: a thing, by name → what became of it."""
    state: dict[str, object] = {}
    for kind, agent, _, _, _, name, arguments, status, value in trace.records:
        if kind == _TAKE_OVER:
            known = state.setdefault(f"take-over of {name}", "OK")
            state[f"take-over of {name}"] = "OK" if known == status == "OK" else "in the way"
        elif kind == _XENBUS_STATE and agent == "frontend":
            state[f"front-end {name}"] = arguments[1]
        elif kind == _RESET:
            count = state.get(f"resets of the {name}", 0)
            assert isinstance(count, int)
            state[f"resets of the {name}"] = count + 1
        elif kind == _REFERENCE:
            state["reference count"] = value
    return state


def _others(runs: list[Run], orders: list[Order]) -> str:
    return _names([run.order for run in runs if run.order not in orders])


def _names(orders: list[Order]) -> str:
    return ", ".join(map(_name, orders))


def _name(order: Order) -> str:
    return order if isinstance(order, str) else f"permutation {list(order)}"


def _finding(rule: str, agent: str, subject: str, step: int, seen: str) -> Finding:
    source, expected = RULES[rule]
    return Finding(ORACLE, rule, source, agent, subject, step, expected, seen)
