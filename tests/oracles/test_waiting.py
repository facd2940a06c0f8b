"""Who waits too long, for what cannot come, or where nobody may."""

from __future__ import annotations

import pytest

from oracles.waiting import check
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, EVENT, LOADER, Story

NOT_READY = EfiStatus.NOT_READY


def rules(story: Story) -> list[str]:
    """What the oracle reports, in its order."""
    return [finding.rule for finding in check(story.reading)]


@pytest.mark.parametrize("reason", ["no-progress", "nesting"])
def test_a_run_that_is_stuck_is_told_with_its_place(reason: str) -> None:
    """Who, in which call, where, after how many steps, and why."""
    story = Story()
    with story.notification(), story.service("WaitForEvent", BUS, None):
        story.stuck(reason, BUS, "WaitForEvent")
    (finding,) = check(story.reading)
    assert finding.signature == f"waiting/{reason}/XenBusDxe/WaitForEvent"
    assert (finding.step, finding.seen) == (
        2,
        "XenBusDxe came to no end in WaitForEvent at TPL_CALLBACK, inside WaitForEvent by XenBusDxe, "
        f"inside the notification of XenBusDxe, and the run was ended after 2 steps: {reason}.",
    )


def test_a_call_that_is_not_known_is_left_out() -> None:
    """The subject is the reason, then."""
    story = Story()
    story.stuck("nesting")
    (finding,) = check(story.reading)
    assert finding.subject == "nesting"
    assert finding.seen.startswith("XenBusDxe came to no end at TPL_APPLICATION, and")


def test_a_dead_loop_is_told_elsewhere() -> None:
    """By the oracle of faults of real images."""
    story = Story()
    story.stuck("dead-loop", BUS, "XenBusDxe+0x2af")
    assert rules(story) == []


@pytest.mark.parametrize("agent", ["DxeCore", "firmware"])
def test_the_cores_work_is_done_for_the_driver_whose_code_runs(agent: str) -> None:
    """Where none runs, or a third party's, it is nobody's."""
    story = Story()
    with story.entry("Start", BLOCK, None):
        story.stuck("no-progress", agent, "WaitForEvent")
    assert [finding.agent for finding in check(story.reading)] == [BLOCK]
    story = Story()
    story.stuck("no-progress", agent, "WaitForEvent")
    with story.entry("Notify", "third-party", None):
        story.stuck("no-progress", agent, "WaitForEvent")
    assert rules(story) == []


@pytest.mark.parametrize(("before", "inside", "told"), [(0, 2, True), (2, 4, True), (4, 3, False), (3, 2, False)])
def test_a_budget_belongs_to_who_used_most_of_it(before: int, inside: int, told: bool) -> None:
    """A run that is simply long is nobody's fault."""
    story = Story()
    for _ in range(before):
        story.service("Stall", LOADER)
    with story.entry("Start", BUS, None):
        for _ in range(inside):
            story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
    assert rules(story) == (["unbounded-poll"] if told else [])


def test_an_outer_entry_may_hold_the_budget() -> None:
    """The poll itself may be made of short entries."""
    story = Story()
    with story.entry("Start", BUS, None):
        for _ in range(6):
            story.service("Stall")
        with story.entry("Notify", BLOCK, None):
            story.stuck("step-budget", BLOCK, "Stall")
    assert rules(story) == ["unbounded-poll"]


@pytest.mark.parametrize(("inner", "told"), [("Stop", []), ("Notify", ["unbounded-poll"])])
def test_who_came_back_deep_inside_gave_up(inner: str, told: list[str]) -> None:
    """Unload stops the bus, which stops one device after the other: no entry around them waits longer than one of them.

    A notification comes back whatever it interrupts.
    """
    story = Story()
    with story.entry("Unload", BUS, None), story.entry("Stop", BUS, None):
        for _ in range(2):
            with story.entry(inner, BLOCK, EfiStatus.SUCCESS):
                for _ in range(5):
                    story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
    assert rules(story) == told


def test_waiting_without_end_needs_no_records() -> None:
    """WaitForEvent turns in itself. One of many waits, in which the budget happens to run out, is nobody's fault."""
    story = Story()
    for _ in range(20):
        story.service("Stall", LOADER)
    story.stuck("step-budget", BUS, "WaitForEvent")
    assert rules(story) == []
    story.stuck("endless-wait", BUS, "WaitForEvent")
    assert [finding.signature for finding in check(story.reading)] == ["waiting/unbounded-poll/XenBusDxe/WaitForEvent"]


@pytest.mark.parametrize(("depth", "rule"), [(64, []), (65, ["nesting"])])
def test_a_budget_that_is_used_up_deep_inside_is_nesting(depth: int, rule: list[str]) -> None:
    """Calls and entries nest without bound, without a notification."""
    story = Story()
    for _ in range(9):
        story.service("Stall", LOADER)
    story.trace.depth = depth
    story.stuck("step-budget", BUS, "ConnectController")
    assert rules(story) == rule


def polls(
    count: int, *, armed: bool = True, in_exit: bool = True, status: EfiStatus = NOT_READY, agent: str = BUS
) -> Story:
    """A driver polls a timer in its notification."""
    story = Story()
    story.service("SetTimer")
    if not armed:
        story.service("SetTimer", BUS, EfiStatus.SUCCESS, EVENT, 0, 0)

    def poll() -> None:
        with story.notification():
            for _ in range(count):
                story.service("CheckEvent", agent, status)

    if in_exit:
        with story.exit():
            poll()
    else:
        poll()
    return story


def test_a_timer_that_is_off_is_polled_in_vain() -> None:
    """Told once, from its first poll on, with the count."""
    (finding,) = check(polls(17).reading)
    assert finding.signature == "waiting/no-progress/XenBusDxe/timer"
    assert (finding.step, finding.seen) == (
        4,
        "XenBusDxe polled a timer 17 times from here on at TPL_CALLBACK, inside the notification of XenBusDxe, "
        "and timers are off.",
    )


@pytest.mark.parametrize(
    "story",
    [
        polls(16),
        polls(17, armed=False),
        polls(17, in_exit=False),
        polls(17, status=EfiStatus.SUCCESS),
        polls(17, agent="third-party"),
    ],
    ids=["few", "cancelled", "before the exit", "signalled", "the environment"],
)
def test_other_polls_are_no_wait_for_a_timer(story: Story) -> None:
    """A look is no wait; where it is not armed, or timers are on, or it is signalled, something may come."""
    assert rules(story) == []


def test_an_event_without_a_timer_may_be_signalled_by_others() -> None:
    """Only the armed one is dead; each event counts by itself."""
    story = Story()
    story.service("SetTimer", BUS, EfiStatus.SUCCESS, EVENT + 1, 2, 5)
    with story.exit(), story.notification():
        for _ in range(20):
            story.service("CheckEvent", BUS, NOT_READY)
        for _ in range(10):
            story.service("CheckEvent", BUS, NOT_READY, EVENT + 1)
    assert rules(story) == []


def test_a_budget_that_a_dead_timer_used_up_is_one_finding() -> None:
    """The wait for what cannot come explains the end of the run."""
    story = polls(17)
    with story.notification():
        story.stuck("step-budget", BUS, "CheckEvent")
    assert rules(story) == ["no-progress"]


@pytest.mark.parametrize(
    ("total", "told"), [((1_000,), False), ((600, 400), False), ((600, 401), True), ((5_000, 1), True)]
)
def test_stalls_at_notify_add_up(total: tuple[int, ...], told: bool) -> None:
    """Within one entry; told once."""
    story = Story()
    with story.entry("Start"), story.at(Tpl.NOTIFY):
        for microseconds in total:
            story.service("Stall", BUS, EfiStatus.SUCCESS, microseconds)
    findings = check(story.reading)
    assert [finding.rule for finding in findings] == (["blocks-at-notify"] if told else [])
    if told:
        assert findings[0].subject == "Stall"
        assert findings[0].seen == "XenBusDxe waited by Stall at TPL_NOTIFY, inside Start of XenBusDxe."


def test_each_entry_counts_by_itself() -> None:
    """Two short spins are no wait."""
    story = Story()
    for _ in range(2):
        with story.entry("Start"), story.at(Tpl.NOTIFY):
            story.service("Stall", BUS, EfiStatus.SUCCESS, 700)
    assert rules(story) == []


@pytest.mark.parametrize(("count", "told"), [(16, False), (17, True)])
def test_polls_at_notify_add_up(count: int, told: bool) -> None:
    """A look that finds something is none."""
    story = Story()
    with story.notification(tpl=Tpl.NOTIFY):
        for _ in range(count):
            story.service("CheckEvent", BUS, NOT_READY)
        for _ in range(20):
            story.service("CheckEvent")
    assert rules(story) == (["blocks-at-notify"] if told else [])


def test_who_was_entered_at_notify_did_not_choose_it() -> None:
    """Unless it is the notification itself, which was created there; below, at TPL 15, one may wait."""
    story = Story()
    with story.at(Tpl.NOTIFY), story.entry("Stop"):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 9_000)
    with story.notification(tpl=15):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 9_000)
    with story.at(Tpl.NOTIFY):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 9_000)
        with story.entry("Start"):
            story.service("Stall", "third-party", EfiStatus.SUCCESS, 9_000)
    assert rules(story) == []


def test_one_that_is_stuck_hides_no_other() -> None:
    """The environment's, a dead loop's, and one that a dead timer explains come first."""
    story = polls(17)
    story.stuck("no-progress", LOADER, "WaitForEvent")
    story.stuck("dead-loop", BUS, "XenBusDxe+0x2af")
    story.stuck("step-budget", BUS, "CheckEvent")
    story.stuck("nesting", BUS, "SignalEvent")
    assert sorted(rules(story)) == ["nesting", "no-progress"]


def test_sixteen_polls_of_a_timer_explain_nothing() -> None:
    """Then the budget was used up by something else."""
    story = polls(16)
    with story.notification():
        for _ in range(30):
            story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
    assert rules(story) == ["unbounded-poll"]


def test_a_timer_with_a_trigger_time_of_zero_is_armed() -> None:
    """Only the delay type cancels it; two events' polls are not one wait."""
    for second, told in ((EVENT, ["no-progress"]), (EVENT + 1, [])):
        story = Story()
        for event in (EVENT, EVENT + 1):
            story.service("SetTimer", BUS, EfiStatus.SUCCESS, event, 2, 0)
        with story.exit(), story.notification():
            for event in (EVENT, second):
                for _ in range(9):
                    story.service("CheckEvent", BUS, NOT_READY, event)
        assert rules(story) == told


def test_what_is_no_wait_hides_none() -> None:
    """A stall below, a look that finds something, one of a Stop that was entered at TPL_NOTIFY: and then a wait."""
    story = Story()
    story.service("Stall")
    with story.at(Tpl.NOTIFY), story.entry("Stop"):
        story.service("Stall")
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("CheckEvent")
        story.service("Stall", BUS, EfiStatus.SUCCESS, 1_000)
        assert rules(story) == []
        story.service("Stall", BUS, EfiStatus.SUCCESS, 1)
    assert rules(story) == ["blocks-at-notify"]


@pytest.mark.parametrize("services", [("CreateEvent", "CreateEventEx"), ("CreateEventEx", "CreateEvent")])
def test_a_notification_that_somebody_raised_did_not_choose_it(services: tuple[str, str]) -> None:
    """The level that its event was created for counts, not the one at which a third party left the processor."""
    story = Story()
    story.service(services[0], BUS, EfiStatus.SUCCESS, 0x201, int(Tpl.CALLBACK), "notify", 0, "", value=EVENT)
    story.service(services[1], BUS, EfiStatus.SUCCESS, 0x200, int(Tpl.NOTIFY), "notify", 0, "", value=EVENT + 1)
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 9_000)
    assert rules(story) == []
    with story.notification(tpl=Tpl.NOTIFY, event=EVENT + 1):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 9_000)
    assert rules(story) == ["blocks-at-notify"]


@pytest.mark.parametrize(("inner", "told"), [("Stop", []), ("Notify", ["unbounded-poll"])])
def test_who_goes_on_to_the_next_device_has_given_up(inner: str, told: list[str]) -> None:
    """Each device's wait ended; together they used up the budget. Ticks inside of one wait are no progress of it."""
    story = Story()
    with story.entry("Stop", BUS, None):
        for _ in range(4):
            with story.entry(inner, BLOCK):
                for _ in range(20):
                    story.service("Stall")
        story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
    assert rules(story) == told


def test_a_wait_after_others_have_come_back_is_told() -> None:
    """Where it holds more than half of the run by itself; the last one to come back counts."""
    story = Story()
    with story.entry("Stop", BUS, None):
        for count in (2, 10):
            with story.entry("Stop", BLOCK):
                for _ in range(count):
                    story.service("Stall")
        for _ in range(14):
            story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
        assert rules(story) == []
    story = Story()
    with story.entry("Stop", BUS, None):
        with story.entry("Stop", BLOCK):
            for _ in range(10):
                story.service("Stall")
        for _ in range(14):
            story.service("Stall")
        story.stuck("step-budget", BUS, "Stall")
    assert rules(story) == ["unbounded-poll"]
