"""How resets are counted, and to whom they belong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oracles.connection_reset import check
from reference_impl.trace import Phase
from tests.oracles.stories import BLOCK, BUS, Story, traces


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
    (finding,) = check(story.trace)
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
    """A driver that uses the connection after its last reset begins a generation that nobody ends."""
    story = Story()
    story.connection("ring", 1)
    with story.exit():
        with story.notification():
            story.reset("ring", 1)
        with story.notification(BLOCK):
            story.connection("ring", 2, BLOCK)
    (finding,) = check(story.trace)
    assert finding.signature == "connection-reset/missed-reset/XenPvBlkDxe/ring"
    assert story.trace.records[finding.step][5] == "runtime"
    assert finding.seen == (
        "XenPvBlkDxe took the ring into use in step 6, as generation 2, "
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


@given(traces(last_phase=Phase.EXIT))
def test_no_reset_is_missed_without_the_runtime_phase(trace) -> None:
    """As long as the operating system does not own the machine, the reset can still come."""
    assert all(finding.rule == "double-reset" for finding in check(trace))
