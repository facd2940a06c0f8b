"""Finding the way in a trace."""

from __future__ import annotations

import pytest
from hypothesis import given

from oracles.reading import PLATFORM_AGENTS, answer, circumstances, injected, notifier_of, opens, start_of, tpl_name
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
    with pytest.raises(AssertionError, match=r"^the phases before them come again with every attempt$"):
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


def test_the_notifier_is_the_innermost_notification_around() -> None:
    """Neighbours, what is inside of neighbours, and other entries around do not count."""
    story = Story()
    with story.notification("third-party"):
        story.service("Stall", "third-party")
    with story.exit(), story.notification(), story.service("DisconnectController"):
        story.entry("Notify", "third-party")
        with story.entry("Stop", BLOCK):
            with story.add(Kind.SERVICE, BLOCK, "Notify"):
                story.entry("Supported", BLOCK)
            with story.entry("Notify", BLOCK):
                story.service("Stall", BLOCK)
            story.service("Stall", BLOCK)
    story.service("Stall")
    names = [notifier_of(story.trace.records, step) for step in range(len(story.trace.records))]
    stalls = [name for name, record in zip(names, story.trace.records, strict=True) if record[5] == "Stall"]
    assert stalls == ["third-party", BLOCK, BUS, ""]
    assert names[0] == names[2] == ""
    supported = next(step for step, record in enumerate(story.trace.records) if record[5] == "Supported")
    assert names[supported] == BUS


def test_a_record_that_is_cut_out_of_its_trace_has_no_notifier() -> None:
    """Where the outer records are missing, nobody is named; the first record counts."""
    story = Story()
    story.trace.depth = 2
    story.service("Stall")
    assert notifier_of(story.trace.records, 0) == ""
    story = Story()
    with story.entry("Notify", BLOCK):
        story.service("Stall")
        with story.service("DisconnectController", BLOCK), story.entry("Stop"):
            story.service("FreePool")
    assert notifier_of(story.trace.records, 1) == BLOCK
    assert notifier_of(story.trace.records, 4) == BLOCK


def test_entries_end_before_what_comes_behind_them() -> None:
    """The inner one first; what is open at the end of the trace ends there."""
    story = Story()
    with story.entry("Start"), story.service("ConnectController"):
        story.entry("Supported", BLOCK)
    story.service("Stall")
    with story.entry("Stop"):
        story.service("Stall")
    reading = story.reading
    assert [(entry.name, entry.step, entry.end) for entry in reading.entries] == [
        *(("Supported", 2, 3), ("Start", 0, 3), ("Stop", 4, 6)),
    ]
    assert [entry.outer.name if entry.outer else "" for entry in reading.entries] == ["Start", "", ""]
    assert [entry.name for entry in reading.entries_of("Stop", "Start")] == ["Start", "Stop"]
    assert [entry.name for entry in reading.entries_of("Start", "Supported")] == ["Supported", "Start"]
    assert reading.entries_of("Unload") == []
    assert [each if isinstance(each, int) else each.name for each in reading.course] == [
        1,
        "Supported",
        "Start",
        3,
        5,
        "Stop",
    ]
    for name, expected in (("Stop", [3, 5, "Stop"]), ("Start", ["Start", 3, 5])):
        merged = reading.merged(reading.entries_of(name), "Stall")
        assert [each if isinstance(each, int) else each.name for each in merged] == expected


@pytest.mark.parametrize("opener", ["RestoreTPL", "ExitBootServices", "LoadImage", "StartImage", "UnloadImage"])
def test_a_service_in_which_driver_code_runs_ends_the_entry_before_it(opener: str) -> None:
    """Nobody asks about the service itself, but what runs inside is not inside of the entry that is over."""
    story = Story()
    with story.entry("Notify"):
        story.entry("ExitCallback", BLOCK)
        with story.service(opener):
            story.entry("Notify", BLOCK)
    inner = next(entry for entry in story.reading.entries if entry.step == 3)
    assert inner.outer is not None
    assert (inner.outer.step, inner.outer.agent) == (0, BUS)


def test_steps_are_sorted_by_kind_and_name() -> None:
    """In the order of the trace, whichever keys are asked for together; what the core allocates is not among them."""
    story = Story()
    with story.service("OpenProtocol"):
        story.core("allocate", "OpenProtocol")
    story.service("CloseProtocol")
    story.injected("OpenProtocol")
    story.service("OpenProtocol")
    story.frontend(1, 4)
    story.add(Kind.XENBUS_STATE, "backend", "device/vbd/0", (2, 4))
    reading = story.reading
    assert reading.steps_of("CloseProtocol", "OpenProtocol") == [0, 2, 4]
    assert reading.steps_of(int(Kind.INJECTED), int(Kind.XENBUS_STATE)) == [3, 5]
    assert reading.steps_of("FreePool") == []
    with pytest.raises(AssertionError, match="does not look at such records"):
        reading.steps_of("LocateProtocol")


def test_what_opens_has_something_inside() -> None:
    """The last record, and one whose neighbour is no deeper, have nothing; an armed failure stands right inside."""
    story = Story()
    with story.service("FreePool", BUS, EfiStatus.INVALID_PARAMETER):
        story.injected("FreePool")
    story.injected("FreePool")
    with story.service("Stall"):
        story.service("Stall")
    records = story.trace.records
    assert [opens(records, step) for step in range(len(records))] == [True, False, False, True, False]
    assert [injected(records, step) for step in range(len(records))] == [True, False, False, False, False]


def test_who_did_it_is_whose_code_ran() -> None:
    """The innermost entry's agent; outside of any, the record's."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.service("AllocatePool")
    story.service("AllocatePool")
    assert [story.reading.who(step) for step in (1, 2)] == [BLOCK, BUS]


def test_any_step_has_its_innermost_entry() -> None:
    """Also one that nobody asks about; none outside of driver code."""
    story = Story()
    with story.entry("Start"):
        with story.service("LocateProtocol"):
            story.entry("Notify", BLOCK)
        story.service("LocateProtocol")
    story.service("LocateProtocol")
    found = [story.reading.entry_at(step) for step in range(5)]
    assert [entry.step if entry else None for entry in found] == [None, 0, 0, 0, None]


def test_an_entry_knows_how_it_ended() -> None:
    """Failed, ended managing, or neither; and whether the environment caused it."""
    story = Story()
    with story.entry("Notify", "third-party"):
        story.entry("Stop")
    story.entry("Stop", BUS, EfiStatus.DEVICE_ERROR)
    story.entry("Stop", BUS, EfiStatus.SUCCESS, 2, (8,))
    story.entry("Start", BUS, None)
    entries = {entry.step: entry for entry in story.reading.entries}
    assert [entries[step].failed for step in range(5)] == [False, False, True, False, False]
    assert [entries[step].ends_managing for step in range(5)] == [False, True, False, False, False]
    assert [entries[step].is_of_the_environment for step in range(5)] == [True, True, False, False, False]
    assert entries[2].ending == "Stop() of XenBusDxe answered EFI_DEVICE_ERROR"
    assert entries[3].controller == 2


def test_nesting_is_told_by_depth_alone() -> None:
    """Neighbours are as deep; the phase does not matter."""
    story = Story()
    story.trace.phase = int(Phase.EXIT)
    with story.service("Stall"):
        story.service("Stall")
        story.service("Stall")
    assert [opens(story.trace.records, step) for step in range(3)] == [True, False, False]
