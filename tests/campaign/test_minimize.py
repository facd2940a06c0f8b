"""The minimizer's answers, exactly; and that they are 1-minimal, whatever the judge."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign.minimize import is_minimal, minimize, smaller_neighbours, sort_key
from reference_impl.scenario import (
    DEVICE_KINDS,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    Blob,
    Operation,
    Scenario,
    operation,
    operations_of,
    scenario,
    switches_needed,
)

EXIT = operation("exit")
CONNECT = operation("connect")


def platform(*operations: Operation, **values) -> Scenario:
    """A scenario of the platform world under the design `disconnect`."""
    return scenario(design="disconnect", operations=operations, **values)


def judge_of(condition):
    """A judge that finds "bug" where the condition holds."""
    return lambda candidate: ["other"] + ["bug"] * bool(condition(candidate))


def smallest(start: Scenario, condition) -> Scenario:
    """The minimizer's answer, after brute force has found nothing smaller beside it."""
    judge = judge_of(condition)
    found = minimize(start, "bug", judge)
    assert is_minimal(found, "bug", judge) == []
    assert scenario(**{name: getattr(found, name) for name in Scenario.__slots__}) == found
    return found


def kinds(candidate: Scenario) -> list[str]:
    """The kinds of the scenario's operations."""
    return [step.kind for step in candidate.operations]


def fails_later(candidate: Scenario, nth: int) -> bool:
    """Whether a failure is armed at `nth` or later, between the first connect and an exit after it."""
    names = kinds(candidate)
    if "connect" not in names or "exit" not in names:
        return False
    first, last = names.index("connect"), len(names) - 1 - names[::-1].index("exit")
    return any(step.kind == "fail" and step.arguments[1] >= nth for step in candidate.operations[first + 1 : last])


# ---- exact answers --------------------------------------------------------------------------------------------------


def test_a_bug_without_conditions_becomes_the_empty_scenario():
    """Nothing is left where nothing is needed."""
    start = platform(CONNECT, EXIT, devices=("network", "block"), order=(2, 1, 0), reconnection=False)
    assert smallest(start, lambda candidate: True) == platform()


def test_operations_that_a_bug_needs_stay_in_their_order():
    """Of a long scenario, only connect, failure and exit are left, and the failure is as early as it may be."""
    start = platform(
        *(operation("time", milliseconds=100) for _ in range(20)),
        operation("connect", controller="child-3", driver="block", recursive=False),
        *(operation("request", device=index) for index in range(8)),
        operation("fail", call="XS_READ -> EIO", nth=77),
        operation("exit", map_key="stale"),
        EXIT,
        devices=DEVICE_KINDS,
    )
    found = smallest(start, lambda candidate: fails_later(candidate, 3))
    assert found == platform(CONNECT, operation("fail", nth=3), EXIT)


def test_an_argument_takes_the_first_value_that_keeps_the_bug_even_behind_ones_that_lose_it():
    """Bisection alone would stay at 90; the values 7, 8 and 90 have the bug."""
    found = smallest(
        platform(operation("fail", nth=90)),
        lambda candidate: any(step.arguments[1] in (7, 8, 90) for step in candidate.operations if step.kind == "fail"),
    )
    assert found == platform(operation("fail", nth=7))


def test_a_device_that_is_not_needed_goes_and_operations_name_the_others_by_new_numbers():
    """The bug needs a request to a console: it becomes the only device, number 0."""

    def asks_console(candidate: Scenario) -> bool:
        return any(
            step.kind == "request" and step.arguments[0] < len(candidate.devices)
            and candidate.devices[step.arguments[0]] == "console"
            for step in candidate.operations
        )  # fmt: skip

    start = platform(operation("request", device=2), devices=("block", "network", "console", "block"))
    assert smallest(start, asks_console) == platform(operation("request", device=0), devices=("console",))


def test_two_operations_on_one_device_move_to_the_first_device_together():
    """No single argument can change, because both operations must speak of the same device."""

    def same_device(candidate: Scenario) -> bool:
        connected = {step.arguments[0][-1] for step in candidate.operations if step.kind == "connect"}
        return any(step.kind == "request" and str(step.arguments[0]) in connected for step in candidate.operations)

    start = platform(operation("connect", controller="child-5"), operation("request", device=5))
    found = smallest(start, same_device)
    assert found == platform(operation("connect", controller="child-0"), operation("request", device=0))


def test_removing_an_added_device_renumbers_the_devices_after_it():
    """Of three devices added, the bug needs the network device, and a request to it under its number."""

    def asks_network(candidate: Scenario) -> bool:
        there = list(candidate.devices)
        for step in candidate.operations:
            if step.kind == "add-device":
                there.append(step.arguments[0])
            elif step.kind == "request" and len(candidate.devices) <= step.arguments[0] < len(there):
                return there[step.arguments[0]] == "network"
        return False

    start = platform(
        operation("add-device", kind="block"),
        operation("add-device", kind="console"),
        operation("add-device", kind="network"),
        operation("request", device=3),
        devices=("block",),
    )
    assert smallest(start, asks_network) == platform(
        operation("add-device", kind="network"), operation("request", device=0)
    )


def test_a_device_that_is_added_is_there_from_the_start_where_that_does():
    """One operation less, and the others still mean the devices that they meant; at most four are there at the start."""
    add = operation("add-device", kind="console")

    def asks_console_then_added(candidate: Scenario) -> bool:
        """A console is asked that may be there, then a network device that must have been added."""
        kinds = [step.arguments[0] for step in candidate.operations if step.kind == "add-device"]
        there = [*candidate.devices, *kinds]
        asked = [step.arguments[0] for step in candidate.operations if step.kind == "request"]
        if len(asked) != 2 or max(asked) >= len(there):
            return False
        return [there[device] for device in asked] == ["console", "network"] and asked[1] >= len(candidate.devices)

    asks = operation("request", device=1), operation("request", device=0)
    start = platform(operation("add-device", kind="network"), add, *asks)
    assert smallest(start, asks_console_then_added) == platform(
        operation("add-device", kind="network"),
        operation("request", device=0),
        operation("request", device=1),
        devices=("console",),
    )
    full = platform(add, devices=("block",) * 4)
    assert smallest(full, lambda tried: len(tried.devices) == 4 and add in tried.operations) == full


def test_a_failure_moves_to_an_earlier_call_when_what_called_before_it_is_taken_out():
    """Each connect makes ten calls and the bug is the failing second call of the last: one connect is enough."""

    def second_call_of_the_last(candidate: Scenario) -> bool:
        fails = [step.arguments[1] for step in candidate.operations if step.kind == "fail"]
        connects = kinds(candidate).count("connect")
        return connects > 0 and any(nth == 10 * (connects - 1) + 2 for nth in fails)

    start = platform(operation("fail", nth=32), CONNECT, CONNECT, CONNECT, CONNECT)
    assert smallest(start, second_call_of_the_last) == platform(operation("fail", nth=2), CONNECT)


def test_a_failure_moves_to_an_earlier_call_when_a_device_is_taken_out():
    """Likewise where each device makes ten calls."""

    def second_call_of_the_last(candidate: Scenario) -> bool:
        fails = [step.arguments[1] for step in candidate.operations if step.kind == "fail"]
        return any(nth == 10 * (len(candidate.devices) - 1) + 2 for nth in fails)

    start = platform(CONNECT, operation("fail", nth=22), devices=("block", "network", "console"))
    assert smallest(start, second_call_of_the_last) == platform(operation("fail", nth=2), devices=("block",))


def runs_before(candidate: Scenario, late: int, early: int, members: int = 4) -> bool:
    """Whether, in a group of so many members, edk2's number `late` runs before number `early`."""
    if candidate.order == ORDER_FIFO:
        order = list(reversed(range(members)))
    else:
        named = [] if candidate.order == ORDER_EDK2 else list(candidate.order)
        order = [member for member in named + list(range(len(named), members)) if member < members]
    return order.index(late) < order.index(early)


def test_a_permutation_shrinks_to_the_one_swap_that_matters():
    """The bug needs number 1 before number 0."""
    found = smallest(platform(order=(3, 1, 2, 0)), lambda candidate: runs_before(candidate, 1, 0))
    assert found == platform(order=(1, 0))


def test_an_order_that_must_turn_two_distant_members_keeps_the_shortest_way():
    """Number 2 before number 0 takes two swaps of neighbours, and no more are left."""
    found = smallest(platform(order=(3, 2, 1, 0)), lambda candidate: runs_before(candidate, 2, 0))
    assert len(found.order) == 3
    assert sort_key(found)[5][1] == 2


def test_fifo_becomes_the_permutation_that_matters():
    """fifo says nothing about which pair matters; (1, 0) does."""
    found = smallest(platform(order=ORDER_FIFO), lambda candidate: runs_before(candidate, 1, 0, members=7))
    assert found == platform(order=(1, 0))


def test_fifo_becomes_edk2_where_the_order_does_not_matter():
    """edk2's order is the simplest of all."""
    assert smallest(platform(EXIT, order=ORDER_FIFO), lambda candidate: "exit" in kinds(candidate)) == platform(EXIT)


def test_fifo_stays_where_no_permutation_does_the_same():
    """A group of more members than a permutation may name needs fifo."""
    found = smallest(platform(order=ORDER_FIFO), lambda candidate: candidate.order == ORDER_FIFO)
    assert found == platform(order=ORDER_FIFO)


def test_reconnection_stays_off_only_where_the_bug_needs_it():
    """The older way of resetting stays in the scenario where it is the cause."""
    found = smallest(platform(EXIT, reconnection=False), lambda candidate: not candidate.reconnection)
    assert found == platform(reconnection=False)


def test_a_kind_of_device_becomes_block_where_any_does():
    """The first kind of the list is the simplest."""
    found = smallest(platform(devices=("console", "console")), lambda candidate: len(candidate.devices) == 2)
    assert found == platform(devices=("block", "block"))


def test_a_kind_of_device_stops_at_the_first_that_keeps_the_bug():
    """A network device stays where no block device does."""
    found = smallest(platform(devices=("console",)), lambda candidate: set(candidate.devices) & {"network", "console"})
    assert found == platform(devices=("network",))


def test_bytes_shrink_to_the_ones_that_matter():
    """Of a raw answer, the byte 0x07 behind two others is left, and those become zero."""
    start = scenario(world="ring", operations=(operation("answer", what="raw", data=bytes(range(1, 40))),))
    found = smallest(
        start,
        lambda candidate: any(7 in step.arguments[1][2:] for step in candidate.operations if step.kind == "answer"),
    )
    assert found == scenario(world="ring", operations=(operation("answer", data=b"\0\0\x07"),))


def test_permissions_that_are_not_needed_go():
    """A hostile environment loses the permissions that the bug does without, and turns conforming where it can."""
    start = replace(platform(EXIT), environment="hostile", switches=("lying-peers", "silent-peers", "timer-ticks"))
    judge = judge_of(lambda candidate: "silent-peers" in candidate.switches)
    found = minimize(start, "bug", judge)
    assert is_minimal(found, "bug", judge) == []
    assert found == replace(platform(), environment="hostile", switches=("silent-peers",))
    assert minimize(start, "bug", judge_of(lambda candidate: True)) == platform()


def test_a_simpler_value_brings_its_permission():
    """Permissions follow the operations that need them: one takes the place of another."""
    start = replace(
        platform(operation("third-party", act="wait"), operation("third-party", act="close")),
        environment="hostile",
        switches=("third-party-events", "third-party-waits"),
    )

    def needs_a_third_party(candidate):
        return any(switches_needed(step) <= set(candidate.switches) for step in candidate.operations)

    found = smallest(start, needs_a_third_party)
    assert found == replace(platform(operation("third-party")), environment="hostile", switches=("third-party-stops",))


def test_world_design_and_environment_of_the_finding_stay():
    """They say what was tested."""
    start = scenario(design="reference-count", operations=(EXIT,))
    assert smallest(start, lambda candidate: True) == scenario(design="reference-count")


# ---- the contract ---------------------------------------------------------------------------------------------------


def test_a_scenario_without_the_finding_is_refused():
    """There is nothing to shrink, and the caller learns it."""
    with pytest.raises(ValueError, match="does not have the finding bug"):
        minimize(platform(EXIT), "bug", judge_of(lambda candidate: False))


def test_used_up_runs_end_it_with_a_remark(capsys):
    """The best scenario so far comes back, and one sentence says that it may not be the smallest."""
    start = platform(*[operation("time", milliseconds=10000)] * 50)
    needs_ten = judge_of(lambda candidate: len(candidate.operations) >= 10)
    remarks: list[str] = []
    found = minimize(start, "bug", needs_ten, max_runs=5, remark=remarks.append)
    assert 10 <= len(found.operations) < 50
    assert remarks == ["bug: 5 runs were used up; the scenario may not be the smallest"]
    assert minimize(start, "bug", needs_ten, max_runs=5) == found
    assert capsys.readouterr().err == remarks[0] + "\n"


def test_no_scenario_runs_twice():
    """Answers are kept: a run is what costs."""
    seen: list[Scenario] = []

    def judge(candidate: Scenario) -> list[str]:
        seen.append(candidate)
        return ["bug"] if fails_later(candidate, 9) else []

    minimize(platform(CONNECT, CONNECT, operation("fail", nth=100), EXIT, EXIT, order=(1, 0)), "bug", judge)
    assert len(seen) == len(set(seen))


def test_every_smaller_neighbour_is_smaller():
    """What "1-minimal" compares with agrees with `sort_key`; shifting numbers aside, which comes with fewer devices."""
    start = platform(
        operation("connect", controller="child-2", driver="block", recursive=False),
        operation("fail", call="XS_READ -> EIO", nth=5),
        devices=("console", "network"),
        order=(2, 0, 1),
        reconnection=False,
    )
    neighbours = list(smaller_neighbours(start))
    assert len(neighbours) > 30
    assert all(sort_key(neighbour) < sort_key(start) for neighbour in neighbours)


def test_the_order_of_orders():
    """edk2, then permutations by inversions, then by their numbers, then fifo."""
    orders = [ORDER_EDK2, (1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0), ORDER_FIFO]
    keys = [sort_key(platform(order=order)) for order in orders]
    assert sorted(keys) == [keys[0], keys[2], keys[1], *keys[3:]]


# ---- any judge ------------------------------------------------------------------------------------------------------


def random_scenario(source: random.Random, world: str) -> Scenario:
    """A scenario of up to eight operations with any values."""
    made = []
    for _ in range(source.randrange(9)):
        kind = source.choice(operations_of(world))
        values = tuple(
            source.randbytes(source.randrange(6)) if isinstance(field, Blob) else source.choice(field.values[:12])
            for field in OPERATIONS[kind].fields
        )
        made.append(Operation(kind, values))
    permutation = list(range(source.randrange(6)))
    source.shuffle(permutation)
    return scenario(
        world=world,
        design="disconnect" if world == "platform" else "",
        devices=tuple(source.choice(DEVICE_KINDS) for _ in range(source.randrange(4))),
        order=source.choice([ORDER_EDK2, ORDER_FIFO, tuple(permutation)]),
        reconnection=source.random() < 0.5,
        operations=tuple(made),
    )


def any_condition(source: random.Random, start: Scenario):
    """A random condition that `start` meets: some features of it, joined; some only by luck of a checksum."""
    needed = [step for step in start.operations if source.random() < 0.4]
    devices = source.randrange(len(start.devices) + 1)
    order = start.order if source.random() < 0.4 else None
    luck = source.choice([0, 0, 3])

    def holds(candidate: Scenario) -> bool:
        rest = iter(candidate.operations)
        if not all(any(step == wanted for step in rest) for wanted in needed):
            return False
        if len(candidate.devices) < devices or (order is not None and candidate.order != order):
            return False
        return candidate == start or not luck or sum(repr(sort_key(candidate)).encode()) % luck != 0

    return holds


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["platform", "core", "ring"]))
def test_the_answer_is_one_minimal_for_any_judge(source, world):
    """No neighbour has the signature, the answer has it, it is not larger, and a second time nothing changes."""
    start = random_scenario(source, world)
    condition = any_condition(source, start)
    found = smallest(start, condition)
    assert condition(found)
    assert sort_key(found) <= sort_key(start)
    assert minimize(start, "bug", judge_of(condition)) == found
    assert minimize(found, "bug", judge_of(condition)) == found
