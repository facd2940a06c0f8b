"""Whole scenarios at random, with sensible weights.

A run of a fuzzer that begins with one byte needs thousands of inputs before the first device starts. These scenarios
begin where it gets interesting: devices are there, the bus is connected, something fails or moves, and the loader
leaves.

Two ideas keep them from looking alike:

- Swarm testing: each scenario switches whole kinds of operation off, and picks the few calls that its failures and raw
  calls concentrate on; a hostile one has a few of the environment's switches on. A mixture of everything, every time,
  seldom gets deep into anything.
- Numbers are skewed, not uniform: sequences are short, with a long tail. A failure hits each call of a start about as
  often as the others, or one of the first; later ones less and less.

Nothing is left out altogether: every operation and every value of `OPERATIONS` has its chance in every target of its
world. All randomness comes from the `random.Random` that is passed in.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from reference_impl.failures import CALLS, CLEANUP
from reference_impl.scenario import (
    CORE_CALLS,
    DEVICE_KINDS,
    FAILURES,
    MACHINES,
    MAX_DEVICES,
    MAX_OPERATIONS,
    MAX_ORDER,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    SWITCHES,
    Blob,
    Field,
    Operation,
    Scenario,
    canonical_order,
    kinds_permitted,
    operation,
    values_permitted,
)

if TYPE_CHECKING:
    from fuzz_targets.registry import Target


class Profile(NamedTuple):
    """What the scenarios of a target look like.

    weights         of each kind of operation in the middle part; a kind that is not named has 1
    body_mean       mean number of operations in the middle part
    devices         weights of 0, 1, 2 … devices at the start
    kinds           of these devices
    connect         probability that the firmware connects the bus before the middle part
    exits           weights of 0, 1, 2 … exit attempts at the end
    shuffle         probability that the notification order is a permutation
    deep_shuffle    probability that such a permutation is long
    beginning       how many generated scenarios a guided run begins with
    """

    weights: dict[str, int]
    body_mean: float
    devices: tuple[int, ...] = (1,)
    kinds: tuple[str, ...] = DEVICE_KINDS
    connect: float = 0.0
    exits: tuple[int, ...] = (1,)
    shuffle: float = 0.0
    deep_shuffle: float = 0.0
    beginning: int = 200


_PLATFORM_WEIGHTS = {
    "connect": 6,
    "exit": 1,
    "disconnect": 6,
    "request": 5,
    "fail": 4,
    "add-device": 4,
    "remove-device": 4,
    "backend": 4,
    "time": 2,
    "unload": 2,
    "load": 2,
    "allocate": 2,
    "free": 1,
    "third-party": 10,
    "without-handler": 3,
    "tear-out": 2,
    "vanish": 4,
    "peer": 4,
    "store": 1,
}

PROFILES: dict[str, Profile] = {
    "lifecycle": Profile(
        _PLATFORM_WEIGHTS,
        body_mean=5,
        devices=(1, 6, 6, 2, 1),
        connect=0.9,
        exits=(2, 14, 3, 1),
        shuffle=0.45,
        deep_shuffle=0.3,
    ),
    "exit_boot_services": Profile(
        _PLATFORM_WEIGHTS | {"disconnect": 2, "unload": 1, "load": 1, "add-device": 6},
        body_mean=2.5,
        devices=(0, 1, 4, 5, 6),
        connect=1.0,
        exits=(0, 4, 4, 2, 1),
        shuffle=0.75,
        deep_shuffle=0.7,
        beginning=80,  # each runs in several orders
    ),
    "efi_image": Profile(
        _PLATFORM_WEIGHTS,
        body_mean=4,
        devices=(1, 8, 4, 1),
        kinds=("block",),  # the one kind that has a driver
        connect=0.95,
        exits=(2, 14, 3),
        shuffle=0.3,
        deep_shuffle=0.1,
        beginning=30,  # a run of real drivers takes ten times as long
    ),
    "boot_services": Profile({"call": 40, "fail": 4, "time": 2, "allocate": 2, "exit": 1}, body_mean=12),
    "xenstore_ring": Profile({"ask": 6, "answer": 8, "skew": 2, "fail": 1}, body_mean=8),
}

# What the loader may still do between two attempts to leave (UEFI 2.10 §7.4.6), and now and then what it may not.
_BETWEEN_EXITS = (
    "allocate",
    "free",
    "time",
    "allocate",
    "free",
    "time",
    "allocate",
    "request",
    "disconnect",
    "connect",
)

# What a failure mostly hits. In the platform world, what bus and device drivers call while they start and what is not
# clean-up: elsewhere no failure fires in the conforming environment. The numbers are how often a start with one disk has
# them, where a disconnecting bus does not allocate for each request.
START_CALLS = {
    "AllocatePool": 8,
    "AllocatePages": 3,
    "CreateEvent": 2,
    "OpenProtocol": 13,
    "InstallProtocolInterface": 1,
    "InstallMultipleProtocolInterfaces": 1,
    "HVMOP_get_param": 2,
    "EVTCHNOP_alloc_unbound": 1,
    "XENMEM_add_to_physmap": 5,
    "XS_DIRECTORY": 3,
    "XS_READ": 11,
    "XS_WRITE": 4,
    "XS_WATCH": 1,
    "XS_TRANSACTION_START": 1,
    "XS_TRANSACTION_END": 1,
}
_ALL_CALLS = tuple(call for call in CALLS if CALLS[call])
_LIKELY_CALLS = {
    **dict.fromkeys(MACHINES, tuple(START_CALLS)),
    "core": tuple(call for call in _ALL_CALLS if call in CORE_CALLS and call not in CLEANUP),
    "ring": tuple(call for call in _ALL_CALLS if call.startswith("XS_")),
}
_FAILURES_OF: dict[str, tuple[str, ...]] = {
    call: tuple(name for name, (of, _) in FAILURES.items() if of == call) for call in CALLS
}


SWITCH_SHARE = 0.25
"""How likely each switch is to be on in a hostile scenario; one always is."""


def generate(
    rng: Random,
    target: Target,
    design: str,
    fault: str = "",
    environment: str = "conforming",
    switches: tuple[str, ...] = tuple(SWITCHES),
) -> Scenario:
    """A new valid scenario for `target`, with this design and this seeded fault.

    In the hostile environment some of `switches` are on.
    """
    profile = target.profile
    on = random_switches(rng, switches) if environment == "hostile" else ()
    swarm = Swarm(rng, target.world, profile, on)
    operations: list[Operation] = []
    if target.world in MACHINES:
        # Without a device the bus alone is responsible, which conforming environments need not see often.
        devices = () if on and rng.random() < 0.12 else random_devices(rng, profile)
        # What is armed or slowed down first hits the very first start.
        while rng.random() < 0.25:
            operations.append(swarm.fail() if rng.random() < 0.6 else random_operation(rng, "backend"))
        # A hook's place among the notifications is decided by when it is made: before all drivers, or after.
        while swarm.hostile and rng.random() < 0.4:
            operations.append(random_operation(rng, rng.choice(swarm.hostile), target.world, on))
        if rng.random() < profile.connect:
            operations.append(operation("connect"))
        operations += swarm.body(profile.body_mean)
        operations += _leaving(rng, profile, swarm)
        return Scenario(
            world=target.world,
            design=design,
            environment=environment,
            switches=on,
            fault=fault,
            reconnection=rng.random() < 0.8,
            devices=devices,
            order=random_order(rng, profile),
            operations=tuple(operations[:MAX_OPERATIONS]),
        )
    operations = swarm.body(profile.body_mean)
    if target.world == "core" and rng.random() < 0.3:
        operations.append(random_operation(rng, "exit"))
    return Scenario(
        world=target.world,
        design=design,
        fault=fault,
        order=ORDER_FIFO if rng.random() < 0.2 else ORDER_EDK2,
        operations=tuple(operations[:MAX_OPERATIONS]),
    )


def failure_sweep(target: Target, design: str) -> list[Scenario]:
    """Every failure that a start with one device may meet, one at a time: once for each kind of device.

    After the failure the firmware connects once more, and leaves. Empty in the worlds that have no drivers.
    """
    if target.world not in MACHINES:
        return []
    after = (operation("connect"), operation("connect"), operation("exit"))
    return [
        Scenario(
            world=target.world,
            design=design,
            devices=(kind,),
            operations=(operation("fail", call=failure, nth=nth), *after),
        )
        for kind in target.profile.kinds
        for call, count in START_CALLS.items()
        for failure in _FAILURES_OF[call]
        for nth in range(1, count + 1)
    ]


class Swarm:
    """The choices that one scenario sticks to: which kinds of operation it has, and which calls it aims at.

    hostile  the kinds that its switches permit beyond those of the conforming environment; it has them all
    """

    def __init__(self, rng: Random, world: str, profile: Profile, switches: tuple[str, ...] = ()) -> None:
        self.rng = rng
        self.world = world
        self.switches = switches
        kinds = kinds_permitted(world, ())
        self.hostile = [kind for kind in kinds_permitted(world, switches) if kind not in kinds]
        # One time in eight everything is on: some bugs need many kinds together.
        everything = rng.random() < 0.125
        self.kinds = [kind for kind in kinds if everything or rng.random() < 0.5] or [rng.choice(kinds)]
        self.kinds += self.hostile
        self.weights = [profile.weights.get(kind, 1) for kind in self.kinds]
        self.failing = [random_failing_call(rng, world) for _ in range(rng.randint(1, 3))]
        self.services = rng.sample(CORE_CALLS, rng.randint(2, 10)) if world == "core" else []

    def body(self, mean: float) -> list[Operation]:
        """A sequence of operations; its length is distributed exponentially around `mean`."""
        length = min(int(self.rng.expovariate(1 / mean) + 0.5), MAX_OPERATIONS)
        steps: list[Operation] = []
        for kind in self.rng.choices(self.kinds, self.weights, k=length):
            if kind == "fail":
                steps.append(self.fail())
            elif kind == "call":
                steps.append(self.call())
            else:
                steps.append(random_operation(self.rng, kind, self.world, self.switches))
        return steps

    def fail(self) -> Operation:
        """An armed failure of one of the calls that this scenario aims at."""
        return _failure_of(self.rng.choice(self.failing), self.rng)

    def call(self) -> Operation:
        """A raw call of one of the services that this scenario aims at; any service now and then."""
        service = self.rng.choice(self.services if self.rng.random() < 0.9 else CORE_CALLS)
        return Operation("call", (service, *[_selector(self.rng) for _ in range(5)]))


def random_operation(rng: Random, kind: str, world: str = "platform", switches: tuple[str, ...] = ()) -> Operation:
    """An operation of this kind that these switches permit, its fields filled independently, simple values preferred."""
    if kind == "fail":
        return _failure_of(random_failing_call(rng, world), rng)
    # The bus and all of it, half of the time: one child restarts a device, the bus restarts everything.
    if kind in ("connect", "disconnect") and rng.random() < 0.5:
        return operation(kind)
    return Operation(kind, tuple(random_value(rng, kind, field, switches) for field in OPERATIONS[kind].fields))


def random_failing_call(rng: Random, world: str) -> str:
    """A call for failures to aim at: one that matters in this world most often, any now and then.

    Kinds of call have the same chance half of the time; the other half every single call of a start has.
    """
    dice = rng.random()
    if world in MACHINES and dice < 0.4:
        return rng.choices(tuple(START_CALLS), tuple(START_CALLS.values()))[0]
    return rng.choice(_LIKELY_CALLS[world] if dice < 0.85 else _ALL_CALLS)


def _failure_of(call: str, rng: Random) -> Operation:
    return Operation("fail", (rng.choice(_FAILURES_OF[call]), random_nth(rng, START_CALLS.get(call, 0))))


def random_value(rng: Random, kind: str, field: Field, switches: tuple[str, ...] = ()) -> Any:
    """A value for one field of an operation of this kind; the field has one that these switches permit."""
    if isinstance(field, Blob):
        return _random_bytes(rng, field.size_max)
    if field.needs:
        return rng.choice(values_permitted(field, switches))
    if field.name == "nth":
        return random_nth(rng)
    if kind == "call" and field.name != "service":
        return _selector(rng)
    if kind == "exit":
        return field.values[0 if rng.random() < 0.75 else 1]
    values = field.values
    # Devices and children count from nought, and there are seldom more than two: the first few are the ones that exist.
    if len(values) > 4 and rng.random() < 0.7:
        return values[rng.randrange(4)]
    return rng.choice(values)


def random_nth(rng: Random, usual: int = 0) -> int:
    """At which call a failure fires, up to 128: any of the `usual` number most often, where that is known; else a small one."""
    dice = rng.random()
    if usual and dice < 0.65:
        # A second device has as many calls again.
        return rng.randint(1, usual * rng.choice((1, 1, 2)))
    if dice < 0.85:
        return rng.randint(1, 4 if rng.random() < 0.6 else 20)
    return rng.randint(1, 128)


def random_switches(rng: Random, switches: tuple[str, ...]) -> tuple[str, ...]:
    """Some of these switches, at least one, sorted."""
    return tuple(sorted({*(name for name in switches if rng.random() < SWITCH_SHARE), rng.choice(switches)}))


def random_devices(rng: Random, profile: Profile) -> tuple[str, ...]:
    """The devices at the start, as many as the profile likes."""
    count = rng.choices(range(len(profile.devices)), profile.devices)[0]
    return tuple(rng.choice(profile.kinds) for _ in range(min(count, MAX_DEVICES)))


def random_order(rng: Random, profile: Profile) -> str | tuple[int, ...]:
    """A notification order; permutations as often and as deep as the profile likes."""
    if rng.random() >= profile.shuffle:
        return ORDER_EDK2 if rng.random() < 0.65 else ORDER_FIFO
    # A permutation that is longer than the list of notifications still orders those that are there.
    order = list(range(rng.randint(5, MAX_ORDER) if rng.random() < profile.deep_shuffle else rng.randint(2, 5)))
    rng.shuffle(order)
    return canonical_order(tuple(order))


def _leaving(rng: Random, profile: Profile, swarm: Swarm) -> list[Operation]:
    """The end of a scenario: attempts to exit, and what the loader does between them."""
    attempts = rng.choices(range(len(profile.exits)), profile.exits)[0]
    if "early-notifications" in swarm.switches and rng.random() < 0.5:
        attempts += 1
    steps: list[Operation] = []
    for attempt in range(attempts):
        if attempt:
            steps += [random_operation(rng, rng.choice(_BETWEEN_EXITS)) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        # An attempt that is not the last one has to fail, or nothing comes after it.
        last = attempt == attempts - 1
        stale = rng.random() < (0.05 if last else 0.85)
        steps.append(operation("exit", map_key="stale" if stale else "fresh"))
    if attempts and rng.random() < 0.05:
        steps += swarm.body(1)
    return steps


def _selector(rng: Random) -> int:
    """Picks an argument of a raw call. Small numbers are values that the run has seen, which is what gets somewhere."""
    return rng.randrange(12) if rng.random() < 0.8 else rng.randrange(256)


def _random_bytes(rng: Random, size_max: int) -> bytes:
    """Raw bytes that often begin like a xenstore message: type, request, transaction and length, 32 bits each."""
    if rng.random() < 0.3:
        return b""
    body = rng.randbytes(min(int(rng.expovariate(1 / 8)), size_max))
    if rng.random() < 0.6:
        length = len(body) if rng.random() < 0.6 else rng.choice((0, 1, 4095, 4096, 4097, 1 << 31, (1 << 32) - 1))
        header = (rng.randrange(24), rng.randrange(4), rng.randrange(2), length)
        body = b"".join(number.to_bytes(4, "little") for number in header) + body
    return body[:size_max]
