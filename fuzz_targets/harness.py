"""Runs one scenario and judges it: the few lines that every fuzz target, replay, the minimizer and the bench share."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import guest.snapshots
import reference_impl.world
from oracles import judge
from oracles.finding import Finding
from oracles.order_independence import Order, Run, compare
from reference_impl.scenario import MAX_ORDER, ORDER_EDK2, ORDER_FIFO, Scenario, canonical_order
from reference_impl.trace import Kind, Trace
from reference_impl.uefi import guids


class Verdict(NamedTuple):
    """What came of one run, and of others in other orders where they were compared."""

    trace: Trace
    findings: list[Finding]


def run_and_judge(scenario: Scenario) -> Verdict:
    """Run `scenario` in a world of its own and let every oracle judge the trace.

    In the efi-image world it raises ImageError where an image cannot be had or started, and ExtraMissing.
    """
    run = guest.snapshots.run if scenario.world == "efi-image" else reference_impl.world.run
    trace = run(scenario)
    return Verdict(trace, judge(trace))


def run_in_orders(scenario: Scenario) -> Verdict:
    """Run and judge `scenario`, and, where it notifies several drivers at the exit, in other orders besides.

    The trace and its findings are those of the scenario's own order; what differs in others comes on top.
    """
    verdict = run_and_judge(scenario)
    orders = orders_to_compare(scenario.order, verdict.trace)
    if not orders:
        return verdict
    runs = [Run(scenario.order, *verdict)]
    runs += [Run(order, *run_and_judge(replace(scenario, order=order))) for order in orders]
    return Verdict(verdict.trace, verdict.findings + compare(runs))


def orders_to_compare(order: Order, trace: Trace) -> list[Order]:
    """The other orders in which a scenario must run, after a run in `order`; none where it had fewer than two members.

    edk2's, the reverse of it, and one in which the notification that edk2 runs first comes last. A campaign shuffles the
    order of the scenario itself besides.
    """
    notified = {
        arguments[0]
        for kind, _, _, _, _, name, arguments, _, _ in trace.records
        if kind == Kind.ENTRY and name == "Notify" and arguments[1] == guids.EVENT_GROUP_EXIT_BOOT_SERVICES
    }
    if len(notified) < 2:
        return []
    orders: list[Order] = [ORDER_EDK2, ORDER_FIFO]
    if len(notified) > 2:
        orders.append((*range(1, min(len(notified), MAX_ORDER)), 0))
    return [other for other in orders if canonical_order(other) != order]
