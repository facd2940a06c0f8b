"""Mutation and crossover of scenarios, and what atheris calls."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_targets import codec, mutator
from fuzz_targets.generator import generate
from fuzz_targets.guidance import Archive
from fuzz_targets.mutator import LENGTH_LIKED, LENGTH_MAX, Mutator, crossover, fitted, mutate
from fuzz_targets.registry import TARGETS, Target
from reference_impl.scenario import MAX_OPERATIONS, Scenario, operation, scenario, switches_needed
from tests.fuzz_targets.scenarios import checked, scenarios

WORLD_TARGETS = [
    TARGETS[name] for name in ("lifecycle", "exit_boot_services", "boot_services", "xenstore_ring", "efi-image")
]
LIFECYCLE = TARGETS["lifecycle"]
FOR_WORLD = {target.world: target for target in reversed(WORLD_TARGETS)}
MADE = scenario(
    design="disconnect",
    devices=("block", "network"),
    order=(1, 0),
    operations=(operation("connect"), operation("time"), operation("exit")),
)


# ---- scenarios ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", WORLD_TARGETS, ids=lambda target: target.name)
def test_mutants_stay_valid_over_many_seeds(target: Target) -> None:
    """2,500 mutations in a row of each target give valid scenarios, whose world, design and fault stay."""
    rng = random.Random(target.name)
    made = Scenario(target.world, target.default_design)
    for _ in range(2500):
        made = mutate(made, rng, target)
        checked(made)
        assert (made.world, made.design, made.fault) == (target.world, target.default_design, "")
    assert len(made.operations) <= MAX_OPERATIONS


@given(scenarios(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_valid_scenario_can_be_mutated(made: Scenario, seed: int) -> None:
    """Also one that no generator would make."""
    mutant = checked(mutate(made, random.Random(seed), FOR_WORLD[made.world]))
    assert (mutant.world, mutant.design, mutant.fault) == (made.world, made.design, made.fault)


@given(scenarios(), scenarios(), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_two_scenarios_can_be_crossed(first: Scenario, second: Scenario, seed: int) -> None:
    """The child is valid and has world, design and fault of the first."""
    child = checked(crossover(first, second, random.Random(seed)))
    assert (child.world, child.design, child.fault) == (first.world, first.design, first.fault)
    assert first.world == second.world or child == first


def test_a_mutation_is_a_small_change() -> None:
    """Most mutants keep most operations, and nearly all differ from their parent."""
    mutants = [mutate(MADE, random.Random(seed), LIFECYCLE) for seed in range(400)]
    kept = Counter(sum(step in MADE.operations for step in mutant.operations) for mutant in mutants)
    assert kept[3] + kept[2] > 250
    assert sum(mutant == MADE for mutant in mutants) < 60


def test_every_part_of_a_scenario_is_mutated() -> None:
    """Operations, arguments, order, reconnection and devices all change now and then."""
    mutants = [mutate(MADE, random.Random(seed), LIFECYCLE) for seed in range(2000)]
    assert {mutant.reconnection for mutant in mutants} == {True, False}
    assert {"edk2", "fifo"} < {mutant.order for mutant in mutants}
    assert any(isinstance(mutant.order, tuple) and mutant.order != (1, 0) for mutant in mutants)
    assert {len(mutant.devices) for mutant in mutants} >= {0, 1, 2, 3}
    assert any(mutant.operations[::-1] == MADE.operations for mutant in mutants) or any(
        mutant.operations[1:2] == MADE.operations[2:] for mutant in mutants
    )
    assert any(operation("exit", map_key="stale") in mutant.operations for mutant in mutants)


def test_an_argument_moves_to_its_neighbour() -> None:
    """A number that counts something becomes one more or one less, round the end too."""
    made = Scenario(design="disconnect", operations=(operation("fail", nth=1),))
    mutants = [mutate(made, random.Random(seed), LIFECYCLE).operations for seed in range(600)]
    numbers = {steps[0].arguments[1] for steps in mutants if len(steps) == 1 and steps[0].kind == "fail"}
    assert {2, 128} <= numbers


def test_long_scenarios_become_shorter() -> None:
    """Mutation does not make scenarios longer for ever."""
    rng = random.Random(2)
    made = Scenario(design="disconnect", operations=(operation("time"),) * MAX_OPERATIONS)
    lengths = []
    for _ in range(3000):
        made = mutate(made, rng, LIFECYCLE)
        lengths.append(len(made.operations))
    assert max(lengths) <= MAX_OPERATIONS
    assert sum(lengths[2000:]) / 1000 < 2 * LENGTH_LIKED


def test_a_crossover_is_a_beginning_and_an_end() -> None:
    """The operations of the child are a prefix of one parent and a suffix of the other, never too many."""
    first = scenario(design="disconnect", operations=(operation("connect"),) * 150)
    second = scenario(design="exit-callback", devices=("block",), operations=(operation("exit"),) * 150)
    children = [crossover(first, second, random.Random(seed)) for seed in range(100)]
    for child in children:
        kinds = [step.kind for step in child.operations]
        assert kinds == sorted(kinds)
        assert len(kinds) <= MAX_OPERATIONS
        assert child.design == "disconnect"
    assert {child.devices for child in children} == {(), ("block",)}


# ---- bytes --------------------------------------------------------------------------------------------------------


def test_ten_thousand_seeds_give_inputs_within_their_size() -> None:
    """Whatever input, size and seed atheris passes, the answer fits and stands for a scenario of the target."""
    rng = random.Random(11)
    mutators = [Mutator(target, target.default_design, "") for target in WORLD_TARGETS]
    data = b""
    for seed in range(10_000):
        subject = mutators[seed % 4]
        if seed % 7 == 0:
            data = rng.randbytes(rng.randrange(200))
        max_size = rng.choice((0, 1, 9, 40, 300, 4096))
        if seed % 3 == 0:
            result = subject.crossed(data, rng.randbytes(rng.randrange(100)), max_size, seed)
        else:
            result = subject.mutated(data, max_size, seed)
        assert len(result) <= max_size
        checked(codec.decode(result))
        if max_size == 4096:
            made = codec.decode(result)
            assert (made.world, made.design) == (subject.target.world, subject.target.default_design)
            data = result


def test_the_seed_decides() -> None:
    """The same input and seed give the same answer; other seeds give others."""
    data = codec.encode(generate(random.Random(1), LIFECYCLE, "disconnect"))
    subject = Mutator(LIFECYCLE)
    answers = [subject.mutated(data, 4096, seed) for seed in range(50)]
    assert [subject.mutated(data, 4096, seed) for seed in range(50)] == answers
    assert len(set(answers)) > 40


def test_a_run_starts_with_whole_scenarios() -> None:
    """libFuzzer's first input is a byte or none; the answer is a generated scenario."""
    subject = Mutator(LIFECYCLE, "exit-callback", "")
    lengths = [len(codec.decode(subject.mutated(b"\n", 4096, seed)).operations) for seed in range(100)]
    assert sum(lengths) > 400


def test_design_and_fault_of_the_campaign_are_fixed() -> None:
    """A seed from another design, fault or world becomes one of this campaign."""
    subject = Mutator(LIFECYCLE, "reference-count", "bus-resets-twice")
    for other in (MADE, Scenario(world="ring", operations=(operation("ask"),))):
        pinned = checked(subject.pinned(other))
        assert (pinned.world, pinned.design, pinned.fault) == ("platform", "reference-count", "bus-resets-twice")
    assert subject.pinned(MADE).operations == MADE.operations
    assert subject.pinned(subject.pinned(MADE)) is not MADE


def test_without_a_campaign_the_bytes_decide() -> None:
    """Where nothing is fixed, a scenario stays what it is, and another world gets the target's default design."""
    subject = Mutator(LIFECYCLE)
    assert subject.pinned(MADE) is MADE
    assert subject.pinned(Scenario(world="core")).design == LIFECYCLE.default_design
    core = Mutator(TARGETS["boot_services"])
    assert checked(core.pinned(MADE)).world == "core"


def test_the_smoke_target_only_generates() -> None:
    """Its inputs do not depend on what is in the corpus, and all designs come."""
    subject = Mutator(TARGETS["smoke"])
    data, other = codec.encode(MADE), codec.encode(subject.pinned(codec.decode(bytes(100))))
    assert [subject.mutated(data, 4096, seed) for seed in range(30)] == [
        subject.mutated(other, 4096, seed) for seed in range(30)
    ]
    designs = {codec.decode(subject.crossed(data, data, 4096, seed)).design for seed in range(30)}
    assert designs == set(TARGETS["smoke"].designs)
    fixed = Mutator(TARGETS["smoke"], "disconnect", "")
    assert {codec.decode(fixed.mutated(data, 4096, seed)).design for seed in range(10)} == {"disconnect"}


def test_inputs_come_from_the_archive_too() -> None:
    """Where there is an archive, part of the mutants descend from what it holds; an empty one does no harm."""
    subject = Mutator(LIFECYCLE)
    subject.archive = Archive()
    short = codec.encode(Scenario(design="disconnect", operations=(operation("time"),)))
    subject.mutated(short, 4096, 1)
    long = Scenario(design="disconnect", operations=(operation("exit"),) * 19)
    subject.archive.keep(codec.encode(long), {1}, {1: "group"})
    descended = sum(
        codec.decode(subject.mutated(short, 4096, seed)).operations.count(operation("exit")) > 9 for seed in range(200)
    )
    assert 0.2 * 200 < descended < 0.6 * 200


def test_a_sweep_comes_once() -> None:
    """Every scenario of it, with what the campaign has fixed, in an order that hangs on the seed."""
    subject, other = (Mutator(LIFECYCLE, "reference-count", "bus-forgets-reset") for _ in range(2))
    subject.begin_sweep(1)
    other.begin_sweep(2)
    assert subject.sweep != other.sweep
    awaited = {codec.encode(subject.pinned(made)) for made in subject.sweep}
    came = Counter(subject.mutated(codec.encode(MADE), 4096, seed) for seed in range(12_000))
    assert not subject.sweep
    assert max(came[data] for data in awaited) < 5  # now and then a mutation comes to the same
    assert min(came[data] for data in awaited) == 1


def test_an_error_of_ours_is_kept_for_the_next_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception would hang the process: the input goes on unchanged within the size, and the error waits."""

    def broken(*arguments: object) -> Scenario:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(mutator, "generate", broken)
    subject = Mutator(LIFECYCLE)
    assert subject.custom_mutator(b"abc", 2, 1) == b"ab"
    assert subject.custom_crossover(b"", b"", 100, 1) in (b"", subject.custom_crossover(b"", b"", 100, 1))
    assert subject.errors >= 1
    assert isinstance(subject.failure, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError, match="planted"):
        subject.mutated(b"", 100, 1)


def test_the_wrappers_give_what_the_functions_give() -> None:
    """Without an error the net changes nothing."""
    data, other = codec.encode(MADE), codec.encode(generate(random.Random(1), LIFECYCLE, "disconnect"))
    subject = Mutator(LIFECYCLE)
    for seed in range(50):
        assert subject.custom_mutator(data, 500, seed) == subject.mutated(data, 500, seed)
        assert subject.custom_crossover(data, other, 500, seed) == subject.crossed(data, other, 500, seed)
    assert (subject.errors, subject.failure) == (0, None)


def test_fitted_leaves_operations_off_at_the_end() -> None:
    """What fits stays, and even a header that does not fit decodes."""
    whole = codec.encode(MADE)
    assert fitted(MADE, len(whole)) == whole
    assert codec.decode(fitted(MADE, len(whole) - 1)) == MADE.with_operations(MADE.operations[:2])
    for size in range(len(whole)):
        assert len(fitted(MADE, size)) <= size
        checked(codec.decode(fitted(MADE, size)))


def test_what_is_mutated_or_crossed_stays_short(monkeypatch):
    """However long the inputs are: a long scenario runs slowly, and a campaign would be full of them."""
    monkeypatch.setattr(mutator, "GENERATE_SHARE", 0)
    target = TARGETS["lifecycle"]
    long = codec.encode(scenario(design="reference-count", operations=(operation("connect"), operation("exit")) * 40))
    changes = Mutator(target, "reference-count", "")
    for seed in range(300):
        assert len(codec.decode(changes.mutated(long, 4096, seed)).operations) <= LENGTH_MAX
        assert len(codec.decode(changes.crossed(long, long, 4096, seed)).operations) <= LENGTH_MAX


def test_switches_of_a_hostile_scenario_go_on_and_off() -> None:
    """What a new one permits comes with it; a conforming scenario never gets one, and none comes that was not asked for."""
    conforming = mutate(MADE, random.Random(1), LIFECYCLE)
    assert conforming.switches == ()
    bare = replace(MADE, environment="hostile")
    asked = ("silent-peers", "third-party-stops", "timer-ticks")
    mutants = [checked(mutate(bare, random.Random(seed), LIFECYCLE, asked)) for seed in range(60)]
    assert {mutant.switches for mutant in mutants} == {(name,) for name in asked}
    assert any(switches_needed(step) for mutant in mutants for step in mutant.operations)
    dressed = replace(bare, switches=asked)
    assert len({mutate(dressed, random.Random(seed), LIFECYCLE, asked).switches for seed in range(600)}) == 4


def test_a_campaign_fixes_the_environment_and_its_switches() -> None:
    """Whatever the bytes say; without a word of the campaign, the bytes decide."""
    hostile = replace(MADE, environment="hostile", switches=("silent-peers", "timer-ticks"))
    assert Mutator(LIFECYCLE).pinned(hostile) == hostile
    assert Mutator(LIFECYCLE, environment="conforming").pinned(hostile) == MADE
    some = Mutator(LIFECYCLE, environment="hostile", switches=("timer-ticks",))
    assert some.pinned(hostile).switches == ("timer-ticks",)
    assert some.pinned(MADE).environment == "hostile"
    for seed in range(50):
        made = codec.decode(some.custom_mutator(codec.encode(MADE), 4096, seed))
        assert (made.environment, made.switches) in (("hostile", ("timer-ticks",)), ("hostile", ()))
