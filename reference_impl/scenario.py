"""A scenario: what is done to the machine in one run, as data.

A scenario names a design, an environment and the platform, and lists operations. Nothing else decides what a run does:
the same scenario gives the same trace, byte for byte.

`OPERATIONS` is the whole language. Each operation has fields, and each field lists all the values that it may have,
*simplest first*. The byte codec, the YAML form, the generator, the mutator and the minimizer are all driven by this one
table: a value's place in its list is its byte, and the minimizer's meaning of "simpler" is "further to the front".
Values that people read are names.

What deliberately lives elsewhere: bytes and YAML (`fuzz_targets`), and what an operation does (`reference_impl.world`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from reference_impl.failures import BOOT_SERVICES, CALLS
from reference_impl.faulty import FAULTS


class Design(NamedTuple):
    """One way to do the teardown: in which world it exists, and a sentence for people."""

    world: str
    description: str


DESIGNS: dict[str, Design] = {
    "disconnect": Design(
        "platform", "what ships in edk2: the bus disconnects everything in its ExitBootServices handler"
    ),
    "exit-callback": Design("platform", "patch series v1: the bus calls its children back, then resets the connection"),
    "reference-count": Design(
        "platform",
        "the counter-proposal: AddReference, RemoveReference(HandOffToOs); the last one resets the connection",
    ),
    "shipped": Design("efi-image", "the XenBusDxe and XenPvBlkDxe that ship, as binaries"),
    "shipped-bus": Design("efi-image", "the XenBusDxe that ships, with device drivers of the model"),
    "shipped-block": Design("efi-image", "the XenPvBlkDxe that ships, on the bus of the model"),
    "shipped-pci": Design("efi-image", "XenIoPciDxe, XenBusDxe and XenPvBlkDxe that ship, from the PCI device on"),
}

ENVIRONMENTS: dict[str, str] = {
    "conforming": "only what the specification and a working platform allow",
    "hostile": "also what its switches permit: third parties, dying peers, failing cleanup, a core of old",
}

SWITCHES: dict[str, str] = {
    "third-party-stops": "a third party's handler disconnects or stops a controller",
    "third-party-starts": "a third party's handler connects or starts a controller",
    "third-party-events": "a third party's handler signals or closes a driver's ExitBootServices event",
    "third-party-allocates": "a third party's handler allocates pages, so that the memory map moves",
    "third-party-waits": "a third party's handler raises the TPL and leaves it there, or lets time pass",
    "third-party-inside": "a third party's handler interrupts another handler where that lowers the TPL",
    "timer-ticks": "the timer ticks whenever the TPL drops, and a third party has a timer",
    "early-notifications": "the core notifies before it checks the map key, so every retry notifies again",
    "driver-without-handler": "a device driver does nothing at the exit: it knows nothing of the teardown design",
    "unload-connected": "a driver's image is unloaded while it still manages controllers",
    "surprise-removal": "a device vanishes without a word, also in the middle of a transaction",
    "silent-peers": "a peer answers late or never, or dies",
    "lying-peers": "a peer answers twice, or something wrong",
    "cleanup-fails": "armed failures hit calls that give back or finish, and devices that are closing",
    "failures-anywhere": "armed failures hit any call, outside of Start and in notifications too",
    "page-0-mapped": "a guest finds memory at address 0, as on much real firmware: a NULL pointer is no fault there",
}
"""Single permissions of the hostile environment; the conforming one has none. Several failures at once are permitted in
both."""

WORLDS: dict[str, str] = {
    "platform": "firmware, Xen, the bus driver and its device drivers, and the operating system afterwards",
    "core": "the firmware core alone, called with any arguments",
    "ring": "the xenstore client against a peer that may lie",
    "efi-image": "the platform with real .efi drivers in a CPU emulator instead of the drivers in Python",
}

MACHINES = ("platform", "efi-image")
"""Worlds with a whole machine: devices, designs, drivers that are started and stopped, and a hostile environment."""

DEVICE_KINDS = ("block", "network", "console")
MAX_DEVICES = 4  # at the start; more can be added while it runs
MAX_DEVICES_EVER = 8  # as many as operations can name
MAX_OPERATIONS = 200
MAX_ORDER = 16  # notifications that a permutation may name
MAX_IMAGES = 4
IMAGE_SIZE_MAX = 255  # bytes of UTF-8 of an image's name

ORDER_EDK2 = "edk2"
ORDER_FIFO = "fifo"


class Choice(NamedTuple):
    """A field whose value is one of at most 256; the first is the simplest and the default.

    needs  value → the switch that permits it, for those that need one
    """

    name: str
    values: tuple[Any, ...]
    needs: Mapping[Any, str] = {}


class Blob(NamedTuple):
    """A field of raw bytes, at most `size_max` (at most 255) long. Shorter is simpler; the default is empty."""

    name: str
    size_max: int


Field = Choice | Blob


class OperationType(NamedTuple):
    """One kind of operation: in which worlds it exists, its fields, a sentence for people, the switch that permits it."""

    worlds: tuple[str, ...]
    fields: tuple[Field, ...]
    description: str
    needs: str = ""


def failure_name(call: str, status: object) -> str:
    """How a failure is written in a scenario: "AllocatePool -> EFI_OUT_OF_RESOURCES"."""
    return f"{call} -> {status}"


FAILURES: dict[str, tuple[str, Any]] = {
    failure_name(call, status): (call, status) for call, statuses in CALLS.items() for status in statuses
}

_CHILDREN = tuple(f"child-{index}" for index in range(MAX_DEVICES_EVER))
_CONTROLLER = Choice("controller", ("bus", *_CHILDREN))
_DRIVERS = ("xenbus", "block", "network", "console")
_DEVICE = Choice("device", tuple(range(MAX_DEVICES_EVER)))
_SELECTORS = tuple(range(256))
_ACTS = {
    "disconnect": "third-party-stops",
    "stop": "third-party-stops",
    "connect": "third-party-starts",
    "start": "third-party-starts",
    "signal": "third-party-events",
    "close": "third-party-events",
    "allocate": "third-party-allocates",
    "raise-tpl": "third-party-waits",
    "wait": "third-party-waits",
}
_OCCASIONS = {"inside": "third-party-inside", "timer": "timer-ticks"}
_MANNERS = {
    "silent": "silent-peers",
    "dead": "silent-peers",
    "late": "silent-peers",
    "twice": "lying-peers",
    "wrong": "lying-peers",
}

CORE_CALLS = tuple(BOOT_SERVICES)

OPERATIONS: dict[str, OperationType] = {
    "connect": OperationType(
        MACHINES,
        (_CONTROLLER, Choice("driver", ("any", *_DRIVERS)), Choice("recursive", (True, False))),
        "ConnectController, as the firmware does it at boot; `driver` alone where one is named",
    ),
    "exit": OperationType(
        (*MACHINES, "core"),
        (Choice("map_key", ("fresh", "stale")),),
        "the loader calls ExitBootServices with a map key that it has just fetched, or with one that has gone stale",
    ),
    "disconnect": OperationType(
        MACHINES,
        (_CONTROLLER, Choice("driver", ("any", *_DRIVERS)), Choice("child", ("all", *_CHILDREN))),
        "DisconnectController",
    ),
    "request": OperationType(
        MACHINES, (_DEVICE,), "one request through the interface that the device's driver published"
    ),
    "fail": OperationType(
        (*MACHINES, "core", "ring"),
        (Choice("call", tuple(FAILURES)), Choice("nth", tuple(range(1, 129)))),
        "arm a failure: from now on, the nth call that may fail answers this",
    ),
    "add-device": OperationType(MACHINES, (Choice("kind", DEVICE_KINDS),), "a device appears in xenstore"),
    "remove-device": OperationType(
        MACHINES, (_DEVICE,), "the device's backend asks to close, and the device goes when that is done"
    ),
    "backend": OperationType(
        MACHINES,
        (_DEVICE, Choice("delay", (0, 1, 2, 3, 5, 8, 13, 21))),
        "from now on the device's backend lets this many platform steps pass before it answers",
    ),
    "time": OperationType((*MACHINES, "core"), (Choice("milliseconds", (1, 10, 100, 1000, 10000)),), "time passes"),
    "unload": OperationType(
        MACHINES, (Choice("driver", _DRIVERS),), "UnloadImage of a driver, which first disconnects it"
    ),
    "load": OperationType(MACHINES, (Choice("driver", _DRIVERS),), "load a driver that was unloaded"),
    "allocate": OperationType((*MACHINES, "core"), (Choice("pages", (1, 2, 4, 16)),), "the loader allocates pages"),
    "free": OperationType((*MACHINES, "core"), (), "the loader frees the pages that it allocated last"),
    "call": OperationType(
        ("core",),
        (
            Choice("service", CORE_CALLS),
            *(Choice(name, _SELECTORS) for name in ("a", "b", "c", "d", "e")),
        ),
        "a raw service call; each argument is picked by a number from the values that the run has seen and from odd ones",
    ),
    "ask": OperationType(
        ("ring",),
        (
            Choice(
                "request",
                ("READ", "WRITE", "DIRECTORY", "RM", "WATCH", "UNWATCH", "TRANSACTION_START", "TRANSACTION_END"),
            ),
            Choice("path", ("device", "device/vbd/0/state", "", "x" * 300)),
        ),
        "the client under test makes one request",
    ),
    "answer": OperationType(
        ("ring",),
        (
            Choice(
                "what",
                ("honest", "nothing", "error", "wrong-id", "wrong-type", "watch-event", "too-long", "cut", "raw"),
            ),
            Blob("data", 64),
        ),
        "how the peer answers the next request that has no answer planned yet",
    ),
    "skew": OperationType(
        ("ring",),
        (
            Choice("index", ("rsp_prod", "rsp_cons", "req_prod", "req_cons")),
            Choice("amount", (1, -1, 512, 1024, 1025, 1 << 31)),
        ),
        "the peer moves an index of the ring that it should have left alone",
    ),
    "third-party": OperationType(
        MACHINES,
        (
            Choice("act", tuple(_ACTS), _ACTS),
            _CONTROLLER,
            Choice("when", ("exit", "before", *_OCCASIONS), _OCCASIONS),
            Choice("tpl", ("callback", "notify")),
            Choice("nth", tuple(range(1, 129))),
        ),
        "a third party hooks in, to act once: in a notification of the exit or BEFORE group; inside another handler, at "
        "the nth drop of the TPL in the exit group; or at the nth tick of its timer",
    ),
    "without-handler": OperationType(
        ("platform",),
        (Choice("driver", DEVICE_KINDS),),
        "from now on this driver's Start prepares nothing for the exit",
        "driver-without-handler",
    ),
    "tear-out": OperationType(
        ("platform",),
        (Choice("driver", _DRIVERS),),
        "a driver's image is unloaded as it is: no controller is disconnected, no event closed",
        "unload-connected",
    ),
    "vanish": OperationType(
        MACHINES,
        (_DEVICE, Choice("requests", tuple(range(64)))),
        "a device and its nodes are gone: at once, or before xenstored answers the request after so many others",
        "surprise-removal",
    ),
    "peer": OperationType(
        MACHINES, (_DEVICE, Choice("manner", tuple(_MANNERS), _MANNERS)), "how the device's backend behaves from now on"
    ),
    "store": OperationType(
        MACHINES,
        (Choice("manner", ("silent", "twice", "wrong"), _MANNERS),),
        "how xenstored answers from now on, until the operating system takes over",
    ),
}


class Operation(NamedTuple):
    """One step of a scenario: its kind, and the values of `OPERATIONS[kind].fields` in that order."""

    kind: str
    arguments: tuple[Any, ...] = ()


def operation(kind: str, /, **values: Any) -> Operation:
    """An operation from named fields; what is not named has its simplest value.

    Raises ValueError for an unknown kind or field, or a value that the field does not have.
    """
    if kind not in OPERATIONS:
        raise ValueError(f"unknown operation {kind!r}")
    fields = OPERATIONS[kind].fields
    unknown = set(values) - {field.name for field in fields}
    if unknown:
        raise ValueError(f"{kind} has no field {sorted(unknown)[0]!r}")
    return Operation(kind, tuple(_checked(kind, field, values.get(field.name, default_of(field))) for field in fields))


def default_of(field: Field) -> Any:
    """The simplest value of a field."""
    return b"" if isinstance(field, Blob) else field.values[0]


def _checked(kind: str, field: Field, value: Any) -> Any:
    if isinstance(field, Blob):
        valid = isinstance(value, bytes) and len(value) <= field.size_max
    else:
        valid = any(value is known or (type(value) is type(known) and value == known) for known in field.values)
    if not valid:
        raise ValueError(f"{kind}.{field.name} cannot be {value!r}")
    return value


def switches_needed(step: Operation) -> set[str]:
    """The switches without which the environment skips an operation."""
    entry = OPERATIONS[step.kind]
    needed = {entry.needs} if entry.needs else set()
    for field, value in zip(entry.fields, step.arguments, strict=True):
        if isinstance(field, Choice) and field.needs and value in field.needs:
            needed.add(field.needs[value])
    return needed


def values_permitted(field: Choice, switches: tuple[str, ...]) -> tuple[Any, ...]:
    """The values of a field that these switches permit."""
    if not field.needs:
        return field.values
    return tuple(value for value in field.values if field.needs.get(value, "") in ("", *switches))


@cache
def kinds_permitted(world: str, switches: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of operation that these switches permit with some arguments, in the table's order."""
    return tuple(
        kind
        for kind in operations_of(world)
        if OPERATIONS[kind].needs in ("", *switches)
        and all(isinstance(field, Blob) or values_permitted(field, switches) for field in OPERATIONS[kind].fields)
    )


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run, as data. Build it with `scenario()`, which checks it.

    world         one of `WORLDS`
    design        one of the world's `DESIGNS`, "" in a world that has none
    images        of drivers of the user's own, in the efi-image world: what `ebsfuzz inspect` takes, at most `MAX_IMAGES`.
                  One with the name of a driver of the design takes its place, others are there in addition.
    environment   one of `ENVIRONMENTS`; "conforming" in a world that is none of `MACHINES`
    switches      sorted names of `SWITCHES`, in the hostile environment
    fault         one of `FAULTS`, or "": the seeded fault that the world has
    reconnection  whether xenstored offers the reconnection feature
    devices       kinds of the devices that are there at the start, at most `MAX_DEVICES`
    order         of notifications of one group: "edk2" (newest first), "fifo", or a permutation of edk2's order: the
                  k-th notification to run is edk2's number order[k]; what it does not name keeps edk2's place behind.
                  TPLs are respected whatever it says. A permutation has no fixed tail, so that it has one form only.
    operations    what happens, at most `MAX_OPERATIONS`
    """

    world: str = "platform"
    design: str = ""
    images: tuple[str, ...] = ()
    environment: str = "conforming"
    switches: tuple[str, ...] = ()
    fault: str = ""
    reconnection: bool = True
    devices: tuple[str, ...] = ()
    order: str | tuple[int, ...] = ORDER_EDK2
    operations: tuple[Operation, ...] = ()

    def with_operations(self, operations: Iterable[Operation]) -> Scenario:
        """The same scenario with other operations."""
        return replace(self, operations=tuple(operations))


def canonical_order(order: str | tuple[int, ...]) -> str | tuple[int, ...]:
    """The one form of an order: a permutation without its fixed tail; the identity is "edk2"."""
    if isinstance(order, str):
        return order
    length = len(order)
    while length and order[length - 1] == length - 1:
        length -= 1
    return tuple(order[:length]) or ORDER_EDK2


def scenario(**values: Any) -> Scenario:
    """A checked scenario in canonical form. Raises ValueError with the field's name for what is wrong."""
    made = Scenario(**values)
    order = made.order
    problem = ""
    if made.world not in WORLDS:
        problem = f"world: unknown {made.world!r}"
    elif made.world in MACHINES and made.design not in designs_of(made.world):
        problem = f"design: unknown {made.design!r} in the world {made.world!r}"
    elif made.world not in MACHINES and made.design:
        problem = f"design: the world {made.world!r} has none"
    elif made.images and made.world != "efi-image":
        problem = f"images: the world {made.world!r} has none"
    elif len(made.images) > MAX_IMAGES or not all(map(is_image_name, made.images)):
        problem = f"images: at most {MAX_IMAGES} names of at most {IMAGE_SIZE_MAX} bytes"
    elif made.environment not in ENVIRONMENTS:
        problem = f"environment: unknown {made.environment!r}"
    elif made.environment not in environments_of(made.world):
        problem = f"environment: the world {made.world!r} has only the conforming one"
    elif made.switches and made.environment == "conforming":
        problem = "switches: the conforming environment has none"
    elif any(switch not in SWITCHES for switch in made.switches) or list(made.switches) != sorted(set(made.switches)):
        problem = f"switches: {made.switches!r} are not sorted names of switches"
    elif made.fault and made.fault not in FAULTS:
        problem = f"fault: unknown {made.fault!r}"
    elif len(made.devices) > MAX_DEVICES or any(kind not in DEVICE_KINDS for kind in made.devices):
        problem = f"devices: at most {MAX_DEVICES} of {', '.join(DEVICE_KINDS)}"
    elif isinstance(order, str) and order not in (ORDER_EDK2, ORDER_FIFO):
        problem = f"order: unknown {order!r}"
    elif not isinstance(order, str) and (len(order) > MAX_ORDER or sorted(order) != list(range(len(order)))):
        problem = f"order: {order!r} is no permutation of 0 to n-1 with n at most {MAX_ORDER}"
    elif len(made.operations) > MAX_OPERATIONS:
        problem = f"operations: {len(made.operations)}, more than {MAX_OPERATIONS}"
    if problem:
        raise ValueError(problem)
    for index, step in enumerate(made.operations):
        if step.kind not in OPERATIONS or made.world not in OPERATIONS[step.kind].worlds:
            raise ValueError(f"operations[{index}]: no operation {step.kind!r} in the world {made.world!r}")
        fields = OPERATIONS[step.kind].fields
        if len(step.arguments) != len(fields):
            raise ValueError(f"operations[{index}]: {step.kind} takes {len(fields)} values")
        for field, value in zip(fields, step.arguments, strict=True):
            _checked(step.kind, field, value)
    return replace(
        made,
        order=canonical_order(order),
        images=tuple(made.images),
        devices=tuple(made.devices),
        operations=tuple(made.operations),
    )


def is_image_name(text: str) -> bool:
    """Whether this can stand for an image in a scenario: printable and not too long."""
    return bool(text) and text.isprintable() and len(text.encode()) <= IMAGE_SIZE_MAX


def designs_of(world: str) -> tuple[str, ...]:
    """The designs that a world has, in the table's order; none in a world without drivers."""
    return tuple(name for name, entry in DESIGNS.items() if entry.world == world)


def environments_of(world: str) -> tuple[str, ...]:
    """The environments that a world has; the conforming one alone where there is no machine."""
    return tuple(ENVIRONMENTS) if world in MACHINES else ("conforming",)


def operations_of(world: str) -> tuple[str, ...]:
    """The kinds of operation that a world has, in the table's order."""
    return tuple(kind for kind, entry in OPERATIONS.items() if world in entry.worlds)
