"""What of a trace becomes feedback."""

import random
import subprocess
import sys
from collections.abc import Iterable

from fuzz_targets import guidance
from fuzz_targets.generator import generate
from fuzz_targets.guidance import SIZE, Archive, Features, Guidance, feature
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import operation, scenario
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.status import EfiStatus
from reference_impl.world import run

Row = tuple[object, ...]


def _trace(*rows: Row) -> Trace:
    """A trace of (kind, agent, depth, phase, name, arguments, status, value)."""
    trace = Trace()
    for kind, agent, depth, phase, name, arguments, status, value in rows:
        trace.records.append((int(kind), agent, 4, depth, int(phase), name, arguments, status, value))
    return trace


def _entry(agent: str, name: str, status: object = EfiStatus.SUCCESS, depth: int = 0, phase: Phase = Phase.BOOT) -> Row:
    return (Kind.ENTRY, agent, depth, phase, name, (), status, None)


def _call(name: str, status: object, phase: Phase = Phase.BOOT, agent: str = "Dxe", depth: int = 1) -> Row:
    return (Kind.SERVICE, agent, depth, phase, name, (), status, None)


_LENGTHS = {feature("times", "records", bits) for bits in range(12)}


def _features(*rows: Row) -> set[int]:
    """The features but for the one that says how long the trace is."""
    return Features().of(_trace(*rows)) - _LENGTHS


REFUSED = EfiStatus.OUT_OF_RESOURCES


def test_features_are_numbers_below_the_size() -> None:
    """Real traces give some dozens to hundreds of features, all of them counters that exist."""
    target = TARGETS["lifecycle"]
    subject = Features()
    for seed in range(20):
        found = subject.of(run(generate(random.Random(seed), target, "reference-count")))
        assert all(0 <= number < SIZE for number in found)
    made = scenario(design="reference-count", devices=("block",), operations=(operation("connect"), operation("exit")))
    assert 30 < len(subject.of(run(made))) < 300


def test_a_cache_does_not_change_the_features() -> None:
    """A trace has the same features whatever came before it, and after the caches were emptied."""
    rows = [_entry("Dxe", "Start", REFUSED), _call("AllocatePool", REFUSED)]
    subject = Features()
    first = subject.of(_trace(*rows))
    subject.of(_trace(_entry("Other", "Stop")))
    assert subject.of(_trace(*rows)) == first == Features().of(_trace(*rows))


def test_caches_do_not_grow_for_ever(monkeypatch: object) -> None:
    """A fault that makes new names all the time cannot eat the memory."""
    monkeypatch.setattr(guidance, "_CACHE_MAX", 8)
    subject = Features()
    for number in range(100):
        subject.of(_trace(_entry(f"Dxe{number}", "Start"), _call("AllocatePool", REFUSED, agent=f"Dxe{number}")))
    assert len(subject._codes) <= 8
    assert len(subject._numbers) <= 8


def test_a_call_that_succeeds_before_the_exit_is_no_news() -> None:
    """Failing ones are, and so is every call once the exit has begun."""
    start = _entry("Dxe", "Start")
    assert _features(start, _call("AllocatePool", EfiStatus.SUCCESS)) == _features(start)
    assert _features(start, _call("AllocatePool", REFUSED)) > _features(start)
    assert _features(start, _call("AllocatePool", EfiStatus.SUCCESS, Phase.EXIT)) > _features(start)


def test_the_entry_point_around_a_call_matters() -> None:
    """The same refusal in Start, in Stop, and in a Start that fails are three features."""
    refusal = _call("AllocatePool", REFUSED)
    sets = [
        _features(entry, refusal) - _features(entry)
        for entry in (_entry("Dxe", "Start"), _entry("Dxe", "Stop"), _entry("Dxe", "Start", REFUSED))
    ]
    assert len(set.union(*sets)) == 3


def test_what_the_scenario_says_anyway_is_no_feature() -> None:
    """Operations, and what the core allocates inside of a service, say nothing about what was reached."""
    operation_row = (Kind.OPERATION, "scenario", 0, Phase.BOOT, "connect", ("bus",), None, 0)
    memory_row = (Kind.CORE_MEMORY, "Dxe", 1, Phase.EXIT, "CloseEvent", ("free", 0), None, 16)
    assert _features(operation_row, memory_row) == set()


def test_the_order_of_notifications_is_a_feature() -> None:
    """Bus before device differs from device before bus."""
    bus, device = (_entry(agent, "Notify", phase=Phase.EXIT) for agent in ("Bus", "Device"))
    assert _features(bus, device) != _features(device, bus)


def test_an_injected_failure_knows_its_entry_point() -> None:
    """The nearest record before it with a smaller depth that is an entry point; none outside of driver code."""
    injected = (Kind.INJECTED, "Dxe", 2, Phase.BOOT, "AllocatePool", (), REFUSED, None)
    inside = [_entry("Dxe", "Start"), _call("AllocatePool", REFUSED), injected]
    elsewhere = [_entry("Dxe", "Stop"), _entry("Dxe", "Start"), _call("AllocatePool", REFUSED), injected]
    outside = [_entry("Dxe", "Start"), _call("AllocatePool", REFUSED, depth=0), (*injected[:2], 1, *injected[3:])]
    assert feature("injected", "Dxe", "AllocatePool", "Start") in _features(*inside)
    assert feature("injected", "Dxe", "AllocatePool", "Start") in _features(*elsewhere)
    assert feature("injected", "Dxe", "AllocatePool", "") in _features(*outside)


def test_states_are_features_with_their_values() -> None:
    """Reference counts, xenbus states and the variables of drivers; a device's number does not matter."""

    def count(value: int) -> Row:
        return (Kind.REFERENCE, "Bus", 0, Phase.BOOT, "AddReference", (), None, value)

    def state(device: str, new: int) -> Row:
        return (Kind.XENBUS_STATE, "backend", 0, Phase.BOOT, device, (1, new), None, None)

    def variable(value: int) -> Row:
        return (Kind.DRIVER_STATE, "Bus", 0, Phase.BOOT, "worn", (), None, value)

    assert _features(count(1)) != _features(count(2))
    assert _features(state("device/vbd/0", 2)) == _features(state("device/vbd/1", 2))
    assert _features(state("device/vbd/0", 2)) != _features(state("device/vif/0", 2))
    assert _features(state("device/vbd/0", 2)) != _features(state("device/vbd/0", 4))
    assert _features(variable(1)) != _features(variable(2))


def test_how_often_something_happens_is_a_feature_by_powers_of_two() -> None:
    """One, two, three attempts differ; five and six do not."""
    by_count = _attempts(range(1, 10))
    assert len({frozenset(found) for found in by_count[:4]}) == 4
    assert by_count[4] == by_count[5]
    assert by_count[6] != by_count[7]


def test_the_length_of_a_trace_is_a_feature_up_to_a_limit() -> None:
    """So every run that records anything gives feedback, and long ones get no more of it than others."""
    call = _call("AllocatePool", EfiStatus.SUCCESS)
    by_length = [Features().of(_trace(*[call] * length)) for length in (0, 1, 2, 600, 5000)]
    assert by_length[0] == set()
    assert by_length[1] != by_length[2]
    assert by_length[3] == by_length[4]


def test_ever_more_of_the_same_is_no_news() -> None:
    """Or else long scenarios would be kept for nothing but their length."""
    assert len({frozenset(found) for found in _attempts((600, 1200, 2400))}) == 1
    many, more = ((Kind.REFERENCE, "Bus", 0, Phase.BOOT, "AddReference", (), None, value) for value in (20, 30))
    assert _features(many) == _features(more)


def _attempts(counts: Iterable[int]) -> list[set[int]]:
    attempt = (Kind.EXIT, "DxeCore", 0, Phase.RETRY, "attempt", (), None, None)
    return [_features(*[attempt] * count) for count in counts]


def test_features_do_not_depend_on_the_process() -> None:
    """Another hash seed gives the same numbers, or a corpus would mean something else in each process."""
    program = (
        "import random\n"
        "from fuzz_targets.generator import generate\n"
        "from fuzz_targets.guidance import Features\n"
        "from fuzz_targets.registry import TARGETS\n"
        "from reference_impl.world import run\n"
        "print(sorted(Features().of(run(generate(random.Random(3), TARGETS['lifecycle'], 'disconnect')))))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_each_new_block_of_an_image_is_a_feature() -> None:
    """By image and offset; the archive keeps an input for each."""
    trace, other = _trace(), _trace()
    trace.blocks = {"XenBusDxe": [0x100, 0x200]}
    other.blocks = {"XenBusDxe": [0x100], "XenPvBlkDxe": [0x100]}
    features = Features()
    first, second = features.of(trace), features.of(other)
    assert (len(first), len(second), len(first | second)) == (2, 2, 3)
    assert {features.groups[number] for number in first | second} == {"block"}


def test_the_archive_keeps_a_recent_input_for_each_state() -> None:
    """A later one takes the place, a longer one now and then; features that are no state are not kept."""
    archive = Archive()
    assert archive.choose(random.Random(1)) is None
    archive.keep(b"old", {1, 2, 9}, {1: "count", 2: "order"})
    archive.keep(b"new", {1}, {1: "count", 2: "order"})
    chosen = {archive.choose(random.Random(seed)) for seed in range(50)}
    assert chosen == {b"old", b"new"}
    archive.keep(b"new", {2, 9}, {1: "count", 2: "order"})
    assert {archive.choose(random.Random(seed)) for seed in range(50)} == {b"new"}
    archive = Archive()
    kept = []
    for number in range(64):
        archive.keep(bytes(number), {1}, {1: "count"})
        kept.append(archive.choose(random.Random(1)))
    assert 4 < len(set(kept)) < 32


def test_the_archive_gives_every_sort_of_state_the_same_attention() -> None:
    """One rare state of a sort of its own comes as often as a hundred of another sort together."""
    archive = Archive()
    groups: dict[int, object] = dict.fromkeys(range(100), "many") | {100: "one"}
    archive.keep(b"many", set(range(100)), groups)
    archive.keep(b"one", {100}, groups)
    chosen = [archive.choose(random.Random(seed)) for seed in range(400)]
    assert 140 < chosen.count(b"one") < 260


def test_the_archive_prefers_rare_states() -> None:
    """What few runs have reached is chosen more often than what many have; neither is left out."""
    archive = Archive()
    groups: dict[int, object] = dict.fromkeys(range(4), "stage")
    for _ in range(10):
        archive.keep(b"common", {0, 1, 2}, groups)
    archive.keep(b"rare", {3}, groups)
    chosen = [archive.choose(random.Random(seed)) for seed in range(400)]
    assert 1.5 * 100 < chosen.count(b"rare") < 300


def test_states_of_two_sorts_may_have_one_number() -> None:
    """Numbers are hashes: each sort has its own count and input for it."""
    archive = Archive()
    archive.keep(b"first", {1}, {1: "count"})
    archive.keep(b"the second", {1}, {1: "order"})
    assert {archive.choose(random.Random(seed)) for seed in range(50)} == {b"first", b"the second"}


def test_guidance_hits_one_counter_for_each_feature() -> None:
    """Counters are reserved once, hit once a run each, and the input is archived."""
    reserved: list[int] = []

    def reserve() -> int:
        reserved.append(1000 + len(reserved))
        return reserved[-1]

    subject = Guidance(reserve)
    assert len(reserved) == SIZE
    counted = (Kind.REFERENCE, "Bus", 0, Phase.BOOT, "AddReference", (), None, 1)
    trace = _trace(_entry("Dxe", "Start", REFUSED), _call("AllocatePool", REFUSED), counted)
    hits: list[int] = []
    subject.feed(b"input", trace, hits.append)
    assert sorted(hits) == sorted(1000 + number for number in Features().of(trace))
    assert {1000 + number for number in subject.distinct} == set(hits)
    assert subject.archive.choose(random.Random(1)) == b"input"
