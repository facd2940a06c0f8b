"""Scenarios as bytes."""

import random
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz_targets.codec import SIZE_MAX, VERSION, decode, encode
from fuzz_targets.generator import generate
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import (
    MAX_OPERATIONS,
    OPERATIONS,
    WORLDS,
    Blob,
    Operation,
    Scenario,
    default_of,
    designs_of,
    operation,
    operations_of,
    scenario,
)
from tests.fuzz_targets.scenarios import checked, scenarios

CONNECT, EXIT = operation("connect"), operation("exit")


@given(scenarios())
@settings(max_examples=300, deadline=None)
def test_decode_gives_back_every_scenario(made: Scenario) -> None:
    """decode(encode(s)) == s for every valid scenario."""
    assert decode(encode(made)) == made


def test_decode_gives_back_generated_scenarios() -> None:
    """decode(encode(s)) == s for what the generator makes."""
    for target in TARGETS.values():
        for seed in range(150):
            made = generate(random.Random(seed), target, target.designs[seed % len(target.designs)])
            assert decode(encode(made)) == made


@given(st.binary(max_size=600))
@example(b"")
@example(bytes(SIZE_MAX))
@example(bytes([255]) * SIZE_MAX)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_valid_scenario(data: bytes) -> None:
    """Whatever the bytes are, the scenario passes every check, and its own bytes stand for it."""
    made = checked(decode(data))
    assert decode(encode(made)) == made
    assert encode(decode(encode(made))) == encode(made)


def test_every_value_of_every_operation_survives() -> None:
    """Each value of each field comes back as itself, with its type."""
    for world in WORLDS:
        design = (designs_of(world) or ("",))[0]
        for kind in operations_of(world):
            fields = OPERATIONS[kind].fields
            for place, field in enumerate(fields):
                for value in (b"", b"\0\xff") if isinstance(field, Blob) else field.values:
                    arguments = [default_of(other) for other in fields]
                    arguments[place] = value
                    made = scenario(world=world, design=design, operations=(Operation(kind, tuple(arguments)),))
                    back = decode(encode(made)).operations[0].arguments[place]
                    assert (back, type(back)) == (value, type(value))


def test_bytes_of_a_scenario_are_fixed() -> None:
    """Stored bytes keep their meaning: a change of the layout must be a new version."""
    made = scenario(
        design="reference-count",
        reconnection=False,
        devices=("network", "block"),
        order=(2, 0, 1),
        operations=(CONNECT, operation("time", milliseconds=100), operation("exit", map_key="stale")),
    )
    connect, leave, time = (operations_of("platform").index(kind) for kind in ("connect", "exit", "time"))
    expected = [VERSION, 0, 2, 0, 0, 0, 1, 2, 1, 0, 3, 2, 0, connect, 0, 0, 0, time, 2, leave, 1]
    assert list(encode(made)) == expected


def test_missing_bytes_are_the_simplest_values() -> None:
    """Bytes that end inside an operation leave its other fields at their simplest."""
    whole = encode(scenario(design="disconnect", operations=(operation("connect", controller="child-1"),)))
    assert decode(whole[:-2]).operations == (operation("connect", controller="child-1"),)
    assert decode(b"") == Scenario(design="disconnect")


def test_a_blob_that_is_cut_off_keeps_what_is_there() -> None:
    """The zeros behind the input do not become part of a Blob."""
    made = scenario(world="ring", operations=(operation("answer", what="raw", data=b"abcdef"),))
    assert decode(encode(made)[:-3]).operations[0].arguments[1] == b"abc"


def test_operations_beyond_the_limit_are_ignored() -> None:
    """A long input gives MAX_OPERATIONS operations."""
    assert len(decode(encode(Scenario(design="disconnect")) + bytes(SIZE_MAX)).operations) == MAX_OPERATIONS


def test_bytes_beyond_the_size_limit_are_ignored() -> None:
    """Two inputs that differ only beyond SIZE_MAX are the same scenario."""
    assert decode(bytes(SIZE_MAX) + b"\1") == decode(bytes(SIZE_MAX))


def test_every_version_byte_decodes() -> None:
    """There is one grammar, and every first byte selects it."""
    body = encode(scenario(design="exit-callback", operations=(CONNECT, EXIT)))[1:]
    assert len({decode(bytes([version]) + body) for version in range(256)}) == 1


def test_the_identity_permutation_is_edk2s_order() -> None:
    """An order has one form, whatever bytes say it."""
    header = encode(Scenario(design="disconnect"))
    assert decode(header[:-1] + bytes([5, 0, 0, 0, 0])).order == "edk2"
    assert decode(header[:-1] + bytes([5, 1, 0, 0, 0])).order == (1, 0)


def test_switches_are_sorted_and_unique() -> None:
    """Switches come back as the sorted set of what the bytes name."""
    made = decode(bytes([VERSION, 0, 0, 1, 3, 7, 0, 7]))
    assert made.switches == ("early-notifications", "third-party-stops")
    assert decode(encode(made)) == made


@pytest.mark.parametrize(("world", "environment"), [(0, 0), (1, 1), (2, 1)])
def test_only_the_hostile_environment_of_a_machine_has_switches(world: int, environment: int) -> None:
    """Elsewhere bytes that name some are read over."""
    made = decode(bytes([VERSION, world, 0, environment, 2, 7, 0, 0, 1]))
    assert (made.environment, made.switches, made.reconnection) == ("conforming", (), False)
    checked(made)


def test_bytes_do_not_depend_on_the_process() -> None:
    """Another process with another hash seed writes the same bytes."""
    program = (
        "import random\n"
        "from fuzz_targets.codec import encode\n"
        "from fuzz_targets.generator import generate\n"
        "from fuzz_targets.registry import TARGETS\n"
        "print(encode(generate(random.Random(7), TARGETS['lifecycle'], 'disconnect')).hex())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
