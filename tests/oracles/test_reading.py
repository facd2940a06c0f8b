"""Finding the way in a trace."""

from __future__ import annotations

import pytest
from hypothesis import given

from oracles.reading import PLATFORM_AGENTS, answer, circumstances, start_of, tpl_name
from reference_impl import core_world
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, Story, traces


@given(traces())
def test_start_of_is_the_first_record_of_the_phase(trace: Trace) -> None:
    """It agrees with reading record by record; where the phase was never reached, it is the end."""
    for phase in (Phase.EXIT, Phase.RUNTIME):
        first = [index for index, record in enumerate(trace.records) if record[4] >= phase]
        assert start_of(trace.records, phase) == (first[0] if first else len(trace.records))


def test_start_of_refuses_phases_that_come_again() -> None:
    """With a retry CHECK follows RETRY, so a binary search for one of them would find anything."""
    with pytest.raises(AssertionError):
        start_of([], Phase.CHECK)


def test_start_of_is_right_after_failed_exits() -> None:
    """The phases of failed attempts all lie before the one that succeeds."""
    story = Story()
    for _ in range(3):
        story.failed_exit()
        with story.before_group():
            pass
    with story.exit():
        pass
    assert [record[5] for record in story.trace.records[start_of(story.trace.records, Phase.EXIT) :]] == [
        "exit-group",
        "runtime",
    ]


def test_a_record_outside_of_everything_has_no_circumstances() -> None:
    """Neighbours at the same depth, and what was called in them, do not contain it."""
    story = Story()
    with story.entry("Start"):
        story.service("AllocatePool")
    story.reset("ring", 1)
    assert circumstances(story.trace.records, 2) == ""


def test_circumstances_name_driver_code_and_services_only() -> None:
    """A reset inside an exit callback that the bus calls in its notification, without the loader around it."""
    story = Story()
    with (
        story.exit(),
        story.notification(),
        story.entry("ExitCallback", BLOCK),
        story.add(Kind.HYPERCALL, BUS, "remove"),
    ):
        story.reset("grant-table", 1)
    assert circumstances(story.trace.records, 5) == (
        ", inside ExitCallback of XenPvBlkDxe, inside the notification of XenBusDxe"
    )


def test_circumstances_of_a_record_cut_out_of_its_trace() -> None:
    """Where the outer records are missing, those that are there are named."""
    story = Story()
    story.trace.depth = 3
    with story.entry("Stop"):
        story.reset("ring", 1)
    assert circumstances(story.trace.records, 1) == ", inside Stop of XenBusDxe"


def test_words_for_levels_and_answers() -> None:
    """TPLs and statuses are written as the specification writes them."""
    assert [tpl_name(tpl) for tpl in (*Tpl, 12)] == [
        "TPL_APPLICATION",
        "TPL_CALLBACK",
        "TPL_NOTIFY",
        "TPL_HIGH_LEVEL",
        "TPL 12",
    ]
    assert answer(EfiStatus.NOT_FOUND) == "it answered EFI_NOT_FOUND"
    assert answer(None) == "it never returned"


def test_nobody_in_the_core_world_is_a_driver_under_test() -> None:
    """Its callers and drivers break the rules on purpose, so that the core has something to refuse."""
    agents = {core_world.CALLER, core_world.OTHER, core_world.Override.agent, *core_world.DRIVERS}
    assert agents <= PLATFORM_AGENTS
