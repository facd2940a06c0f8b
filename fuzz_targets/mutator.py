"""Changes scenarios a little: by operations, arguments and order, not by bytes.

`mutate` and `crossover` are plain functions from scenarios to scenarios. `Mutator` fits them to what atheris wants:
bytes in, bytes out, within a size, from a seed. World, design and fault of the scenario stay what they are, or become
what the campaign has fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from fuzz_targets import codec
from fuzz_targets.generator import (
    Swarm,
    failure_sweep,
    generate,
    random_devices,
    random_operation,
    random_order,
    random_value,
)
from reference_impl.scenario import (
    MAX_DEVICES,
    MAX_OPERATIONS,
    MAX_ORDER,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    SWITCHES,
    Blob,
    Choice,
    Operation,
    Scenario,
    canonical_order,
    kinds_permitted,
)

if TYPE_CHECKING:
    from fuzz_targets.guidance import Archive
    from fuzz_targets.registry import Target

LENGTH_LIKED = 16
"""Operations beyond which every other mutation begins with a deletion. Shorter ones run faster, but every operation of
them matters, so that nearly every change is for the worse."""

LENGTH_MAX = 24
"""Operations that a changed scenario has at most. A campaign's speed hangs on it."""

ARCHIVE_SHARE = 0.4
"""How often the input to be changed comes from the archive of states instead of from libFuzzer's corpus."""

SWITCH_SHARE = 0.06
"""How often a hostile scenario has a switch turned on or off before it is changed."""

GENERATE_SHARE = 0.2
"""How often a mutation is a wholly new scenario."""

SWEEP_SHARE = {"conforming": 0.25, "hostile": 0.1}
"""How often it is one of the failure sweep, until all of that have come. It is conforming, whatever the environment."""


# ---- scenarios ----------------------------------------------------------------------------------------------------


def mutate(scenario: Scenario, rng: Random, target: Target, switches: tuple[str, ...] = tuple(SWITCHES)) -> Scenario:
    """A scenario near to `scenario`: one change most often, up to five. World, design, environment and fault stay.

    In the hostile environment one of `switches` goes on or off now and then; one goes on where none is, as in the seeds of
    the conforming environment.
    """
    if scenario.environment == "hostile" and (not scenario.switches or rng.random() < SWITCH_SHARE):
        scenario = _switched(scenario, rng, switches)
    for _ in range(5):
        # Insertion and mixture make scenarios longer all the time; a long one runs slowly and says little more.
        long = len(scenario.operations) > LENGTH_LIKED and rng.random() < 0.5
        change = _delete if long else rng.choices(_CHANGES, _WEIGHTS)[0]
        scenario = change(scenario, rng, target)
        if rng.random() < 0.75:
            break
    return scenario


def crossover(first: Scenario, second: Scenario, rng: Random) -> Scenario:
    """The beginning of one scenario and the end of the other; devices, order and reconnection of either.

    World, design, environment, switches and fault are those of `first`. A second one from another world gives nothing.
    """
    if first.world != second.world:
        return first
    head = first.operations[: rng.randint(0, len(first.operations))]
    tail = second.operations[rng.randint(0, len(second.operations)) :]
    return replace(
        first,
        devices=rng.choice((first.devices, second.devices)),
        order=rng.choice((first.order, second.order)),
        reconnection=rng.choice((first.reconnection, second.reconnection)),
        operations=(head + tail)[:MAX_OPERATIONS],
    )


def _insert(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    steps.insert(_place(steps, rng), _new_operation(scenario, rng, target))
    return scenario.with_operations(steps[:MAX_OPERATIONS])


def _place(steps: list[Operation], rng: Random) -> int:
    """Where something new goes: every other time before the first exit, where all that was reached is still there."""
    if rng.random() < 0.5:
        return next((index for index, step in enumerate(steps) if step.kind == "exit"), len(steps))
    return rng.randint(0, len(steps))


def _delete(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = scenario.operations
    if not steps:
        return _insert(scenario, rng, target)
    start = rng.randrange(len(steps))
    count = 1 if rng.random() < 0.7 else rng.randint(1, 8)
    return scenario.with_operations(steps[:start] + steps[start + count :])


def _duplicate(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    if not steps:
        return _insert(scenario, rng, target)
    start = rng.randrange(len(steps))
    count = 1 if rng.random() < 0.6 else rng.randint(1, 6)
    at = _place(steps, rng)
    steps[at:at] = steps[start : start + count]
    return scenario.with_operations(steps[:MAX_OPERATIONS])


def _swap(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    if len(steps) < 2:
        return _insert(scenario, rng, target)
    first = rng.randrange(len(steps))
    # Neighbours most often: a small change of order keeps what the rest has set up.
    second = (first + 1) % len(steps) if rng.random() < 0.6 else rng.randrange(len(steps))
    steps[first], steps[second] = steps[second], steps[first]
    return scenario.with_operations(steps)


def _replace(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    if not steps:
        return _insert(scenario, rng, target)
    steps[rng.randrange(len(steps))] = _new_operation(scenario, rng, target)
    return scenario.with_operations(steps)


def _argument(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    with_fields = [index for index, step in enumerate(steps) if step.arguments]
    if not with_fields:
        return _insert(scenario, rng, target)
    index = rng.choice(with_fields)
    kind, arguments = steps[index]
    place = rng.randrange(len(arguments))
    field = OPERATIONS[kind].fields[place]
    old = arguments[place]
    if isinstance(field, Blob):
        value = _changed_bytes(old, rng, field.size_max)
    elif len(field.values) > 2 and rng.random() < 0.5:
        # A neighbour: for numbers that count something, one more or one less is the interesting change.
        value = field.values[(field.values.index(old) + rng.choice((-1, 1))) % len(field.values)]
    else:
        value = random_value(rng, kind, field, tuple(SWITCHES))
    steps[index] = Operation(kind, (*arguments[:place], value, *arguments[place + 1 :]))
    return scenario.with_operations(steps)


def _splice(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    steps = list(scenario.operations)
    at = _place(steps, rng)
    gone = at + (rng.randint(0, 4) if rng.random() < 0.5 else 0)
    steps[at:gone] = Swarm(rng, scenario.world, target.profile, scenario.switches).body(3)
    return scenario.with_operations(steps[:MAX_OPERATIONS])


def _order(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    dice = rng.random()
    if dice < 0.15:
        return replace(scenario, order=rng.choice((ORDER_EDK2, ORDER_FIFO)))
    if dice < 0.4:
        return replace(scenario, order=random_order(rng, target.profile))
    # One notification moves, or two change places; the permutation is first filled up with its fixed tail.
    order = list(scenario.order) if isinstance(scenario.order, tuple) else []
    order += range(len(order), min(max(len(order), rng.randint(2, 8)), MAX_ORDER))
    first, second = rng.randrange(len(order)), rng.randrange(len(order))
    if rng.random() < 0.5:
        order[first], order[second] = order[second], order[first]
    else:
        order.insert(second, order.pop(first))
    return replace(scenario, order=canonical_order(tuple(order)))


def _reconnection(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    return replace(scenario, reconnection=not scenario.reconnection)


def _switched(scenario: Scenario, rng: Random, switches: tuple[str, ...]) -> Scenario:
    """One switch of the hostile environment, on or off. What it permits comes with it."""
    name = rng.choice(switches)
    if name in scenario.switches:
        return replace(scenario, switches=tuple(other for other in scenario.switches if other != name))
    scenario = replace(scenario, switches=tuple(sorted((*scenario.switches, name))))
    news = [
        kind
        for kind in kinds_permitted(scenario.world, scenario.switches)
        if name in (OPERATIONS[kind].needs, *(need for field in _choices(kind) for need in field.needs.values()))
    ]
    if not news:
        return scenario
    steps = list(scenario.operations)
    step = random_operation(rng, rng.choice(news), scenario.world, scenario.switches)
    steps.insert(_place(steps, rng), step)
    return scenario.with_operations(steps[:MAX_OPERATIONS])


def _choices(kind: str) -> list[Choice]:
    return [field for field in OPERATIONS[kind].fields if isinstance(field, Choice)]


def _devices(scenario: Scenario, rng: Random, target: Target) -> Scenario:
    devices = list(scenario.devices)
    dice = rng.random()
    if dice < 0.2:
        return replace(scenario, devices=random_devices(rng, target.profile))
    if (dice < 0.6 or not devices) and len(devices) < MAX_DEVICES:
        devices.insert(rng.randint(0, len(devices)), rng.choice(target.profile.kinds))
    elif dice < 0.8:
        devices.pop(rng.randrange(len(devices)))
    else:
        devices[rng.randrange(len(devices))] = rng.choice(target.profile.kinds)
    return replace(scenario, devices=tuple(devices))


def _new_operation(scenario: Scenario, rng: Random, target: Target) -> Operation:
    kinds = kinds_permitted(scenario.world, scenario.switches)
    weights = target.profile.weights
    kind = rng.choices(kinds, [weights.get(kind, 1) for kind in kinds])[0]
    return random_operation(rng, kind, scenario.world, scenario.switches)


def _changed_bytes(data: bytes, rng: Random, size_max: int) -> bytes:
    changed = bytearray(data)
    dice = rng.random()
    if not changed or dice < 0.25:
        changed.insert(rng.randint(0, len(changed)), rng.randrange(256))
    elif dice < 0.5:
        del changed[rng.randrange(len(changed))]
    elif dice < 0.75:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    else:
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x10, 0x7F, 0x80, 0xFF))
    return bytes(changed[:size_max])


_Change = Callable[[Scenario, Random, "Target"], Scenario]
_CHANGE_WEIGHTS: dict[_Change, int] = {
    _insert: 6,
    _delete: 4,
    _duplicate: 3,
    _swap: 3,
    _replace: 3,
    _argument: 8,
    _splice: 2,
    _order: 5,
    _reconnection: 1,
    _devices: 2,
}
_CHANGES = tuple(_CHANGE_WEIGHTS)
_WEIGHTS = tuple(_CHANGE_WEIGHTS.values())


# ---- bytes, for atheris -------------------------------------------------------------------------------------------


class Mutator:
    """The custom mutator and crossover of one campaign.

    design, fault, images, environment
                   what every scenario gets, or None: what its bytes say
    switches       those of the hostile environment that scenarios may have
    archive        inputs by the state that they reach, where there is guidance
    sweep          scenarios that come once each, the last one first
    errors         how many of our own errors were caught
    failure        the last of them, until somebody takes it

    `custom_mutator` and `custom_crossover` never raise. An exception there would hang the process: atheris prints a
    traceback, and libFuzzer waits for ever. So the error is kept in `failure`, the input goes on unchanged, and the
    engine raises the error at the next execution, where it ends the process as it should. Nothing swallows it.
    `mutated` and `crossed` are the same without that net.
    """

    def __init__(
        self,
        target: Target,
        design: str | None = None,
        fault: str | None = None,
        images: tuple[str, ...] | None = None,
        environment: str | None = None,
        switches: tuple[str, ...] = tuple(SWITCHES),
    ) -> None:
        self.target = target
        self.design = design
        self.fault = fault
        self.images = images
        self.environment = environment
        self.switches = switches
        self._allowed = frozenset(switches)
        self.archive: Archive | None = None
        self.sweep: list[Scenario] = []
        self.errors = 0
        self.failure: Exception | None = None
        self._rng = Random(0)

    def custom_mutator(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A changed or a wholly new input, at most `max_size` bytes."""
        try:
            return self.mutated(data, max_size, seed)
        except Exception as error:
            return self._caught(error, data, max_size)

    def custom_crossover(self, first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
        """A mixture of two inputs, at most `max_size` bytes."""
        try:
            return self.crossed(first, second, max_size, seed)
        except Exception as error:
            return self._caught(error, first, max_size)

    def mutated(self, data: bytes, max_size: int, seed: int) -> bytes:
        """What `custom_mutator` gives; raises what goes wrong."""
        rng = self._rng
        rng.seed(seed)
        target = self.target
        scenario = self.pinned(codec.decode(data))
        if not target.mutates:
            design = rng.choice(target.designs) if self.design is None else self.design
            return fitted(self._new(scenario, design), max_size)
        if self.sweep and rng.random() < SWEEP_SHARE[scenario.environment]:
            return fitted(self.pinned(self.sweep.pop()), max_size)
        # An input too short to say anything is what libFuzzer begins with.
        if len(data) < 8 or rng.random() < GENERATE_SHARE:
            return fitted(self._new(scenario, scenario.design), max_size)
        if self.archive is not None and rng.random() < ARCHIVE_SHARE:
            kept = self.archive.choose(rng)
            scenario = scenario if kept is None else self.pinned(codec.decode(kept))
        return fitted(shortened(mutate(scenario, rng, target, self.switches), rng), max_size)

    def crossed(self, first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
        """What `custom_crossover` gives; raises what goes wrong."""
        rng = self._rng
        rng.seed(seed)
        # libFuzzer takes the crossover for every other mutation, which is more than it is worth.
        if not self.target.mutates or rng.random() < 0.6:
            return self.mutated(first, max_size, rng.getrandbits(32))
        scenario = crossover(self.pinned(codec.decode(first)), codec.decode(second), rng)
        if rng.random() < 0.5:
            scenario = mutate(scenario, rng, self.target, self.switches)
        return fitted(shortened(scenario, rng), max_size)

    def generated(self, seed: int) -> bytes:
        """The bytes of a wholly new scenario with what the campaign has fixed."""
        self._rng.seed(seed)
        return codec.encode(self._new(self.pinned(codec.decode(b"")), self.design or self.target.default_design))

    def begin_sweep(self, seed: int) -> None:
        """Let the failure sweep come among the mutations, in an order that hangs on `seed`."""
        self.sweep = failure_sweep(self.target, self.design or self.target.default_design)
        Random(seed).shuffle(self.sweep)

    def pinned(self, scenario: Scenario) -> Scenario:
        """The scenario in the target's world, with what the campaign has fixed, and no switch that it does not permit."""
        if scenario.world != self.target.world:
            scenario = Scenario(self.target.world, self.target.default_design, fault=scenario.fault)
        design = scenario.design if self.design is None else self.design
        fault = scenario.fault if self.fault is None else self.fault
        images = scenario.images if self.images is None else self.images
        environment = scenario.environment if self.environment is None else self.environment
        switches = scenario.switches
        if environment == "conforming":
            switches = ()
        elif not self._allowed.issuperset(switches):
            switches = tuple(name for name in switches if name in self._allowed)
        fixed = (design, fault, images, environment, switches)
        if fixed != (scenario.design, scenario.fault, scenario.images, scenario.environment, scenario.switches):
            return replace(
                scenario, design=design, fault=fault, images=images, environment=environment, switches=switches
            )
        return scenario

    def _new(self, scenario: Scenario, design: str) -> Scenario:
        """A wholly new scenario, in the environment and with the fault of `scenario`."""
        made = generate(self._rng, self.target, design, scenario.fault, scenario.environment, self.switches)
        return self.pinned(made)

    def _caught(self, error: Exception, data: bytes, max_size: int) -> bytes:
        self.errors += 1
        self.failure = error
        return data[:max_size]


def shortened(scenario: Scenario, rng: Random) -> Scenario:
    """The scenario with at most `LENGTH_MAX` operations, those that stay chosen at random."""
    steps = scenario.operations
    if len(steps) <= LENGTH_MAX:
        return scenario
    stay = sorted(rng.sample(range(len(steps)), LENGTH_MAX))
    return scenario.with_operations([steps[index] for index in stay])


def fitted(scenario: Scenario, max_size: int) -> bytes:
    """The scenario's bytes, with operations left off at the end until they fit into `max_size`.

    Where not even the header fits, its beginning; that decodes to a valid scenario too.
    """
    data = codec.encode(scenario)
    steps = scenario.operations
    while len(data) > max_size and steps:
        # Every operation takes at least one byte, so this many at most can stay.
        steps = steps[: min(len(steps) - 1, max_size)]
        data = codec.encode(scenario.with_operations(steps))
    return data[:max_size]
