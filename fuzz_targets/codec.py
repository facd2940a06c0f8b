"""A scenario as compact bytes: what the fuzzer mutates, stores and merges.

Any bytes decode to a valid scenario, and `decode(encode(scenario)) == scenario`. Both directions are driven by the
tables of `reference_impl.scenario`: a value's byte is its place in its list, and a byte too large is taken modulo the
length.

    version                                 selects a grammar
    world, design, environment              one byte each
    number of switches, then one byte each  only those of a hostile environment count
    fault                                   0 is none
    reconnection                            even is true
    number of devices, then one byte each
    number of images, then for each its length and its UTF-8, in the efi-image world alone
    order                                   0 edk2, 1 fifo, else the length of a permutation …
      … and its Lehmer code                 one byte less than its length: which of the numbers not used yet comes next
    operations until the end                a byte for the kind among those of the world, then its fields: a Choice is
                                            one byte, a Blob a length and its bytes

Where the bytes end, zeros follow: every value that is missing is the simplest one. Operations beyond `MAX_OPERATIONS`
are ignored. A list in the tables may grow only at its end, or else stored bytes change their meaning; the version is
for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference_impl.faulty import FAULTS
from reference_impl.scenario import (
    DEVICE_KINDS,
    MAX_DEVICES,
    MAX_IMAGES,
    MAX_OPERATIONS,
    MAX_ORDER,
    OPERATIONS,
    ORDER_EDK2,
    ORDER_FIFO,
    SWITCHES,
    WORLDS,
    Blob,
    Choice,
    Field,
    Operation,
    Scenario,
    canonical_order,
    designs_of,
    environments_of,
    is_image_name,
    operations_of,
)

VERSION = 1
SIZE_MAX = 65536

_WORLDS = tuple(WORLDS)
_DESIGNS = {world: designs_of(world) or ("",) for world in WORLDS}
_ENVIRONMENTS = {world: environments_of(world) for world in WORLDS}
_SWITCHES = tuple(SWITCHES)
_FAULTS = ("", *FAULTS)

# More than the header or one operation can take: zeros behind the input spare a check of the end at every byte.
_TAIL = bytes(2048)

# A kind's fields: (values, how many) for a Choice, (None, largest size) for a Blob.
_FieldTable = tuple[tuple[tuple[Any, ...] | None, int], ...]


def _field_table(fields: tuple[Field, ...]) -> _FieldTable:
    return tuple(
        (None, field.size_max) if isinstance(field, Blob) else (field.values, len(field.values)) for field in fields
    )


def _positions(field: Choice) -> dict[tuple[type, Any], int]:
    # With the type, because True == 1 and both may be values.
    return {(type(value), value): position for position, value in enumerate(field.values)}


_KINDS: dict[str, tuple[tuple[str, _FieldTable], ...]] = {
    world: tuple((kind, _field_table(OPERATIONS[kind].fields)) for kind in operations_of(world)) for world in WORLDS
}
_KIND_BYTES: dict[str, dict[str, int]] = {
    world: {kind: position for position, (kind, _) in enumerate(kinds)} for world, kinds in _KINDS.items()
}
_VALUE_BYTES: dict[str, tuple[dict[tuple[type, Any], int] | None, ...]] = {
    kind: tuple(None if isinstance(field, Blob) else _positions(field) for field in entry.fields)
    for kind, entry in OPERATIONS.items()
}


def encode(scenario: Scenario) -> bytes:
    """The bytes of a valid scenario; equal scenarios have equal bytes."""
    out = bytearray((VERSION, _WORLDS.index(scenario.world)))
    out.append(_DESIGNS[scenario.world].index(scenario.design))
    out.append(_ENVIRONMENTS[scenario.world].index(scenario.environment))
    out.append(len(scenario.switches))
    out += bytes(_SWITCHES.index(switch) for switch in scenario.switches)
    out.append(_FAULTS.index(scenario.fault))
    out.append(0 if scenario.reconnection else 1)
    out.append(len(scenario.devices))
    out += bytes(DEVICE_KINDS.index(kind) for kind in scenario.devices)
    if scenario.world == "efi-image":
        out.append(len(scenario.images))
        for image in scenario.images:
            name = image.encode()
            out.append(len(name))
            out += name
    order = scenario.order
    if isinstance(order, str):
        out.append(1 if order == ORDER_FIFO else 0)
    else:
        out.append(len(order))
        out += _lehmer_code(order)
    kind_bytes = _KIND_BYTES[scenario.world]
    for kind, arguments in scenario.operations:
        out.append(kind_bytes[kind])
        for positions, value in zip(_VALUE_BYTES[kind], arguments, strict=True):
            if positions is None:
                out.append(len(value))
                out += value
            else:
                out.append(positions[type(value), value])
    return bytes(out)


def decode(data: bytes) -> Scenario:
    """The scenario that `data` stands for. Whatever the bytes are, it is valid and canonical.

    What lies beyond `SIZE_MAX` is ignored.
    """
    data = data[:SIZE_MAX]
    version = data[0] if data else VERSION
    return _GRAMMARS[(version - VERSION) % len(_GRAMMARS)](data)


def _decode_1(data: bytes) -> Scenario:
    end = len(data)
    data += _TAIL
    world = _WORLDS[data[1] % len(_WORLDS)]
    designs = _DESIGNS[world]
    design = designs[data[2] % len(designs)]
    environments = _ENVIRONMENTS[world]
    environment = environments[data[3] % len(environments)]
    at = 5
    switches: tuple[str, ...] = ()
    count = data[4] % (len(_SWITCHES) + 1)
    if count:
        if environment != "conforming":
            switches = tuple(sorted({_SWITCHES[byte % len(_SWITCHES)] for byte in data[at : at + count]}))
        at += count
    fault = _FAULTS[data[at] % len(_FAULTS)]
    reconnection = not data[at + 1] & 1
    count = data[at + 2] % (MAX_DEVICES + 1)
    at += 3
    devices = tuple([DEVICE_KINDS[byte % len(DEVICE_KINDS)] for byte in data[at : at + count]])
    at += count
    images: tuple[str, ...] = ()
    if world == "efi-image":
        count = data[at] % (MAX_IMAGES + 1)
        at += 1
        for _ in range(count):
            name = data[at + 1 : at + 1 + data[at]].decode(errors="ignore")
            at += 1 + data[at]
            if is_image_name(name):
                images += (name,)
    order: str | tuple[int, ...] = ORDER_EDK2
    length = data[at] % (MAX_ORDER + 1)
    at += 1
    if length == 1:
        order = ORDER_FIFO
    elif length:
        order = canonical_order(_permutation(data[at : at + length - 1]))
        at += length - 1

    operations: list[Operation] = []
    kinds = _KINDS[world]
    kind_count = len(kinds)
    room = MAX_OPERATIONS
    while at < end and room:
        room -= 1
        kind, fields = kinds[data[at] % kind_count]
        at += 1
        arguments = []
        for values, size in fields:
            byte = data[at]
            at += 1
            if values is not None:
                arguments.append(values[byte % size])
            else:
                length = byte % (size + 1)
                arguments.append(data[at : min(at + length, end)])
                at += length
        operations.append(Operation(kind, tuple(arguments)))
    return Scenario(
        world, design, images, environment, switches, fault, reconnection, devices, order, tuple(operations)
    )  # fmt: skip


_GRAMMARS: tuple[Callable[[bytes], Scenario], ...] = (_decode_1,)


def _lehmer_code(order: tuple[int, ...]) -> bytes:
    left = list(range(len(order)))
    code = bytearray()
    for number in order[:-1]:
        position = left.index(number)
        code.append(position)
        del left[position]
    return bytes(code)


def _permutation(code: bytes) -> tuple[int, ...]:
    left = list(range(len(code) + 1))
    return tuple([left.pop(byte % len(left)) for byte in code] + left)
