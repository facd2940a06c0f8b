"""Generated scenarios: valid, varied, with sensible weights."""

import random
from collections import Counter
from statistics import mean

import pytest

from fuzz_targets.generator import PROFILES, START_CALLS, failure_sweep, generate, random_nth, random_order
from fuzz_targets.registry import TARGETS, Target
from reference_impl.scenario import (
    MACHINES,
    OPERATIONS,
    Blob,
    Scenario,
    operation,
    operations_of,
    scenario,
    switches_needed,
)
from reference_impl.trace import Kind
from reference_impl.world import run
from tests.fuzz_targets.scenarios import checked
from tests.scenarios import PLATFORM_DESIGNS

WORLD_TARGETS = [
    TARGETS[name] for name in ("lifecycle", "exit_boot_services", "boot_services", "xenstore_ring", "efi-image")
]


def _many(target: Target, count: int) -> list[Scenario]:
    return [generate(random.Random(seed), target, target.default_design) for seed in range(count)]


@pytest.mark.parametrize("target", WORLD_TARGETS, ids=lambda target: target.name)
def test_every_generated_scenario_is_valid(target: Target) -> None:
    """Scenarios are valid and canonical, in the target's world, with the design that was asked for."""
    for made in _many(target, 300):
        assert checked(made).world == target.world
        assert made.design == target.default_design


def test_the_same_seed_gives_the_same_scenario() -> None:
    """All randomness comes from the generator that is passed in."""
    for target in WORLD_TARGETS:
        assert _many(target, 20) == _many(target, 20)


def test_the_fault_is_kept() -> None:
    """A campaign with a seeded fault generates scenarios that have it."""
    made = generate(random.Random(1), TARGETS["lifecycle"], "reference-count", "bus-forgets-reset")
    assert checked(made).fault == "bus-forgets-reset"


@pytest.mark.parametrize("target", WORLD_TARGETS, ids=lambda target: target.name)
def test_every_operation_and_value_comes(target: Target) -> None:
    """Over many seeds each kind of operation comes, and each value of each of its fields."""
    expected = {
        (kind, field.name, value)
        for kind in operations_of(target.world)
        for field in OPERATIONS[kind].fields
        if not isinstance(field, Blob)
        for value in field.values
    }
    kinds = set(operations_of(target.world))
    environments = ("conforming", "hostile") if target.world in MACHINES else ("conforming",)
    seed = 0
    while (expected or kinds) and seed < 40_000:
        environment = environments[seed % len(environments)]
        made = generate(random.Random(seed), target, target.default_design, environment=environment)
        for kind, arguments in made.operations:
            kinds.discard(kind)
            for field, value in zip(OPERATIONS[kind].fields, arguments, strict=True):
                expected.discard((kind, field.name, value))
        seed += 1
    assert not kinds
    assert not expected


@pytest.mark.parametrize("target", WORLD_TARGETS, ids=lambda target: target.name)
def test_a_hostile_scenario_has_only_what_its_switches_permit(target: Target) -> None:
    """And only switches that were asked for, at least one of them; the conforming environment has none."""
    if target.world not in MACHINES:
        return
    asked = ("silent-peers", "third-party-stops", "timer-ticks")
    seen = set()
    for seed in range(300):
        made = checked(generate(random.Random(seed), target, target.default_design, "", "hostile", asked))
        seen.add(made.switches)
        assert made.switches
        assert set().union(*map(switches_needed, made.operations)) <= set(made.switches) <= set(asked)
        conforming = generate(random.Random(seed), target, target.default_design)
        assert conforming.environment == "conforming"
        assert not set().union(*map(switches_needed, conforming.operations))
    assert len(seen) > 3


def test_scenarios_of_a_lifecycle_look_sensible() -> None:
    """Short with a tail, mostly connected first, mostly with an exit, in every kind of order."""
    many = _many(TARGETS["lifecycle"], 1500)
    lengths = [len(made.operations) for made in many]
    assert 6 <= mean(lengths) <= 10
    assert max(lengths) >= 25
    assert mean(any(step.kind == "connect" for step in made.operations) for made in many) > 0.85
    assert 0.8 < mean(any(step.kind == "exit" for step in made.operations) for made in many) < 0.97
    assert mean(sum(step.kind == "exit" for step in made.operations) > 1 for made in many) > 0.1
    orders = Counter(made.order if isinstance(made.order, str) else "permutation" for made in many)
    assert min(orders.values()) > 150
    devices = Counter(len(made.devices) for made in many)
    assert set(devices) == {0, 1, 2, 3, 4}
    assert devices[1] + devices[2] > len(many) / 2
    assert {made.reconnection for made in many} == {True, False}


def test_exit_boot_services_has_more_devices_deeper_shuffles_and_more_retries() -> None:
    """The target's scenarios differ from those of `lifecycle` in what it is for."""
    ends, lives = _many(TARGETS["exit_boot_services"], 600), _many(TARGETS["lifecycle"], 600)

    def depth(made: Scenario) -> int:
        return 0 if isinstance(made.order, str) else len(made.order)

    for measure in (
        lambda made: len(made.devices),
        depth,
        lambda made: sum(step.kind == "exit" for step in made.operations),
    ):
        assert mean(map(measure, ends)) > 1.4 * mean(map(measure, lives))


def test_an_attempt_that_is_followed_by_another_mostly_fails() -> None:
    """A retry makes sense only after a stale key."""
    first = Counter()
    for made in _many(TARGETS["exit_boot_services"], 400):
        exits = [step.arguments[0] for step in made.operations if step.kind == "exit"]
        if len(exits) > 1:
            first[exits[0]] += 1
    assert first["stale"] > 2 * first["fresh"]


def test_a_swarm_leaves_kinds_of_operation_out() -> None:
    """Most scenarios have a few kinds of operation, some have nearly all."""
    kinds = Counter(len({step.kind for step in made.operations}) for made in _many(TARGETS["lifecycle"], 1000))
    assert kinds[2] + kinds[3] + kinds[4] > 400
    assert max(kinds) >= 9


def test_failures_hit_the_first_calls_most_often() -> None:
    """Where nothing is known about a call, half of the numbers are at most four, and the tail goes to the end."""
    rng = random.Random(5)
    numbers = [random_nth(rng) for _ in range(3000)]
    assert 0.45 < mean(number <= 4 for number in numbers) < 0.65
    assert max(numbers) == 128
    assert min(numbers) == 1


def test_each_call_of_a_start_is_about_as_likely_to_fail() -> None:
    """The eleventh of eleven like the fifth; later ones come too."""
    rng = random.Random(5)
    numbers = Counter(random_nth(rng, 11) for _ in range(20_000))
    shares = [numbers[nth] for nth in range(5, 12)]
    assert max(shares) < 2 * min(shares)
    assert min(numbers[nth] for nth in range(1, 5)) >= min(shares)
    assert set(numbers) == set(range(1, 129))


def test_failures_aim_at_the_calls_of_a_start() -> None:
    """Every call of the list is made by bus or device in a Start, as often as the list says in one of the designs."""
    made: dict[str, set[int]] = {call: set() for call in START_CALLS}
    for design in PLATFORM_DESIGNS:
        trace = run(scenario(design=design, devices=("block",), operations=(operation("connect"),)))
        counts = Counter(
            f"XS_{name}" if kind == Kind.XENSTORE else name
            for kind, agent, _, depth, _, name, *_ in trace.records
            if depth and kind in (Kind.SERVICE, Kind.HYPERCALL, Kind.XENSTORE)
        )
        for call in made:
            made[call].add(counts[call])
    assert {call: START_CALLS[call] for call in made if START_CALLS[call] not in made[call]} == {}


def test_a_sweep_has_each_failure_of_a_start_once() -> None:
    """Each in a scenario of its own, for each kind of device; nearly all of them happen. Small worlds have none."""
    swept = failure_sweep(TARGETS["lifecycle"], "reference-count")
    assert len({checked(made) for made in swept}) == len(swept) > 300
    assert {made.devices for made in swept} == {("block",), ("network",), ("console",)}
    assert {made.operations[0].arguments[0].split()[0] for made in swept} == set(START_CALLS)
    happened = [any(record[0] == Kind.INJECTED for record in run(made).records) for made in swept]
    assert mean(happened) > 0.9
    assert failure_sweep(TARGETS["boot_services"], "") == []


def test_orders_are_canonical() -> None:
    """A permutation that permutes nothing is edk2's order, and none has a fixed tail."""
    rng = random.Random(3)
    for _ in range(500):
        order = random_order(rng, PROFILES["exit_boot_services"])
        assert isinstance(order, str) or order[-1] != len(order) - 1
