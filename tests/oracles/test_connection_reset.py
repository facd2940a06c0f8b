"""How resets are counted, and to whom they belong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.connection_reset import check
from oracles.reading import Reading
from reference_impl.trace import Kind, Phase
from tests.oracles.stories import BLOCK, BUS, DISK, SECOND_DISK, Story, traces


def test_ring_and_grant_table_are_counted_apart() -> None:
    """Each has a reset of its own; one that is left out does not hide behind the other."""
    story = Story()
    story.connection("grant-table", 1)
    story.connection("ring", 1)
    with story.exit(), story.notification():
        story.reset("ring", 1)
    assert story.signatures() == ["connection-reset/missed-reset/XenBusDxe/grant-table"]


def test_a_double_reset_names_both_resets() -> None:
    """The second one is the step and its maker the agent; the sentence says where the first one was."""
    story = Story()
    story.connection("ring", 4)
    with story.exit():
        with story.notification(BLOCK):
            story.reset("ring", 4, BLOCK)
        with story.notification():
            story.reset("ring", 4)
    (finding,) = check(story.reading)
    assert finding.step == 6
    assert finding.seen == (
        "XenBusDxe reset the ring of generation 4 again at TPL_CALLBACK, inside the notification of XenBusDxe; "
        "XenPvBlkDxe had reset it in step 4, inside the notification of XenPvBlkDxe."
    )


def test_a_reset_before_the_first_use_is_legal_once() -> None:
    """Generation 0 was never used: cleaning up what an earlier program left is legal, doing it twice is not."""
    story = Story()
    story.reset("ring", 0)
    assert story.signatures() == []
    story.reset("ring", 0)
    assert story.signatures() == ["connection-reset/double-reset/XenBusDxe/ring"]


def test_a_missed_reset_belongs_to_who_took_the_connection_into_use() -> None:
    """The agent is who began the generation that nobody ended, not who might have reset it."""
    story = Story()
    story.connection("ring", 1)
    with story.entry("Stop"):
        story.reset("ring", 1)
    with story.exit(), story.notification(), story.entry("Start", BLOCK):
        story.connection("ring", 2, BLOCK)
    (finding,) = check(story.reading)
    assert finding.signature == "connection-reset/missed-reset/XenPvBlkDxe/ring"
    assert story.trace.records[finding.step][5] == "runtime"
    assert finding.seen == (
        "XenPvBlkDxe took the ring into use in step 7, as generation 2, "
        "and nobody had reset it when the operating system took over."
    )


def test_a_late_reset_does_not_make_up_for_a_missed_one() -> None:
    """What is reset once the operating system runs was not reset when it took over."""
    story = Story()
    story.connection("ring", 1)
    with story.exit():
        pass
    story.reset("ring", 1)
    assert story.signatures() == ["connection-reset/missed-reset/XenBusDxe/ring"]


def test_a_reset_of_another_generation_does_not_end_this_one() -> None:
    """Only the reset of the generation that is in use counts for it."""
    story = Story()
    story.connection("ring", 2)
    with story.exit(), story.notification():
        story.reset("ring", 1)
    assert story.signatures() == ["connection-reset/missed-reset/XenBusDxe/ring"]


def test_the_operating_system_has_connections_of_its_own() -> None:
    """What it takes into use and resets is not judged."""
    story = Story()
    story.connection("ring", 1)
    with story.exit(), story.notification():
        story.reset("ring", 1)
        story.add(Kind.GRANT, "os", "end", (8,), "table not in the physmap")
    story.reset("ring", 1, "os")
    story.connection("ring", 2, "os")
    assert story.signatures() == []


@given(st.lists(st.sampled_from(("start", "stop", "fail")), max_size=12), st.booleans())
def test_any_life_with_one_reset_for_each_use_is_clean(life: list[str], exits: bool) -> None:
    """Starts, stops and failing exits in any order are clean as long as each use is reset before the hand-over."""
    story = Story()
    generation, used = 0, False
    for step in life:
        if step == "start" and not used:
            generation, used = generation + 1, True
            with story.entry("Start"):
                story.connection("ring", generation)
        elif step == "stop" and used:
            used = False
            story.reset("ring", generation)
        elif step == "fail":
            story.failed_exit()
    if exits:
        with story.exit(), story.notification(BUS):
            if used:
                story.reset("ring", generation)
    assert story.signatures() == []


@pytest.mark.parametrize("state", range(9))
def test_only_a_front_end_that_is_up_needs_the_connection(state: int) -> None:
    """Initialised and Connected; one that is closing has told its peer, and the hand-over sees whether it listened."""
    story = Story()
    story.connection("ring", 1)
    story.frontend(1, state)
    story.add(Kind.XENBUS_STATE, "backend", DISK, (2, 4))
    with story.exit(), story.notification():
        story.reset("ring", 1)
    expected = ["connection-reset/premature-reset/XenBusDxe/ring"] if state in (3, 4) else []
    assert story.signatures() == expected


def test_a_premature_reset_names_the_devices_and_since_when() -> None:
    """A state that changes within "up" keeps its first step; the peer's states are of no interest."""
    story = Story()
    story.connection("grant-table", 1)
    story.frontend(1, 3)
    story.frontend(3, 4)
    story.frontend(1, 4, SECOND_DISK)
    with story.entry("Stop"):
        story.reset("grant-table", 1)
    (finding,) = check(story.reading)
    assert finding.seen == (
        "XenBusDxe reset the grant-table of generation 1 at TPL_APPLICATION, inside Stop of XenBusDxe, "
        "while still connected: device/vbd/0 (since step 1), device/vbd/1 (since step 3)."
    )
    assert finding.step == 5


def test_a_second_reset_is_not_premature_too() -> None:
    """One reset, one finding: the second one is a double reset whatever is still connected."""
    story = Story()
    story.connection("ring", 1)
    story.reset("ring", 1)
    story.frontend(1, 4)
    story.reset("ring", 1)
    assert story.signatures() == ["connection-reset/double-reset/XenBusDxe/ring"]


def test_a_device_that_was_taken_away_is_not_connected() -> None:
    """The control domain removed its nodes: state Unknown."""
    story = Story()
    story.connection("ring", 1)
    story.frontend(1, 4)
    story.frontend(4, 0)
    story.reset("ring", 1)
    assert story.signatures() == []


def test_a_use_after_the_reset_belongs_to_the_driver_whose_code_ran() -> None:
    """The bus's protocol takes the ring into use again, but it is the block driver's Stop that calls it."""
    story = Story()
    story.connection("ring", 1)
    with story.exit():
        with story.notification():
            story.reset("ring", 1)
        with story.entry("Stop", BLOCK), story.add(Kind.HYPERCALL, BUS, "EVTCHNOP_send", (1,), 0):
            story.connection("ring", 2)
    (finding,) = check(story.reading)
    assert finding.signature == "connection-reset/use-after-reset/XenPvBlkDxe/ring"
    assert finding.seen == (
        "XenPvBlkDxe used the ring at TPL_APPLICATION, inside Stop of XenPvBlkDxe; XenBusDxe had reset it in step 4, "
        "inside the notification of XenBusDxe."
    )


def test_another_drivers_start_does_not_begin_the_connection_anew() -> None:
    """Only the owner of the connection may: a device that is started on a bus that has let go uses it after the reset."""
    story = Story()
    story.connection("ring", 1)
    story.reset("ring", 1)
    with story.entry("Start", BLOCK):
        story.connection("ring", 2)
    assert story.signatures() == ["connection-reset/use-after-reset/XenPvBlkDxe/ring"]


@pytest.mark.parametrize("entry", ["Start", "EntryPoint"])
def test_the_owner_begins_anew_wherever_it_is_inside_of_its_start(entry: str) -> None:
    """A notification that runs in the middle of it changes nothing."""
    story = Story()
    story.connection("ring", 1)
    story.reset("ring", 1)
    with story.entry(entry), story.entry("Notify", BLOCK):
        story.connection("ring", 2)
    story.reset("ring", 2)
    assert story.signatures() == []


def test_a_use_outside_of_driver_code_belongs_to_who_made_it() -> None:
    """Where no entry point is around, the record says who it was."""
    story = Story()
    story.connection("ring", 1)
    story.reset("ring", 1)
    story.connection("ring", 2)
    assert story.signatures() == ["connection-reset/use-after-reset/XenBusDxe/ring"]


@pytest.mark.parametrize("name", ["grant", "end"])
def test_a_grant_without_a_table_is_a_use_after_its_reset(name: str) -> None:
    """Giving and taking access work on a table that nobody looks at any more; before the first reset it is no use after."""
    story = Story()
    story.add(Kind.GRANT, BUS, name, (8,), "table not in the physmap")
    story.connection("grant-table", 1)
    story.add(Kind.GRANT, BUS, name, (8,), "in use")
    assert story.signatures() == []
    story.reset("grant-table", 1)
    with story.notification(BLOCK):
        story.add(Kind.GRANT, BUS, name, (8,), "table not in the physmap")
    assert story.signatures() == ["connection-reset/use-after-reset/XenPvBlkDxe/grant-table"]


def test_a_reset_before_any_use_starts_no_use_after_it() -> None:
    """Generation 0 is cleaning up what an earlier program left."""
    story = Story()
    story.reset("ring", 0)
    story.connection("ring", 1)
    story.reset("ring", 1)
    assert story.signatures() == []


@given(traces(last_phase=Phase.EXIT))
def test_no_reset_is_missed_without_the_runtime_phase(trace) -> None:
    """As long as the operating system does not own the machine, the reset can still come."""
    assert all(finding.rule != "missed-reset" for finding in check(Reading(trace)))


def test_what_the_operating_system_does_hides_nothing() -> None:
    """Its reset comes first, a driver's second one behind it."""
    story = Story()
    story.reset("ring", 1, "os")
    story.reset("ring", 1)
    story.reset("ring", 1)
    assert story.signatures() == ["connection-reset/double-reset/XenBusDxe/ring"]
