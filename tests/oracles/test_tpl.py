"""At which level what may be called, and who has to put a level back."""

from __future__ import annotations

import pytest

from oracles.tpl import LIMITS, check
from reference_impl.failures import CALLS
from reference_impl.trace import Kind
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus
from tests.oracles import stories
from tests.oracles.stories import BLOCK, BUS, Story

LEVELS = (4, 7, 8, 15, 16, 17, 30, 31)
LIMIT = {
    **dict.fromkeys(stories.CALLS, 16),
    **dict.fromkeys(("ExitBootServices", "WaitForEvent"), 4),
    **dict.fromkeys(("LoadImage", "StartImage"), 4),
    "UnloadImage": 8,
    **dict.fromkeys(("CreateEvent", "CreateEventEx", "CloseEvent", "CheckEvent", "SetTimer"), 30),
    **dict.fromkeys(("SignalEvent", "RaiseTPL", "RestoreTPL", "Stall"), 31),
}
"""UEFI 2.10 §7.1, table of TPL restrictions."""


@pytest.mark.parametrize("service", [name for name in stories.CALLS if name in CALLS and name in LIMIT])
def test_each_service_has_its_limit(service: str) -> None:
    """At the limit it may be called, above it may not."""
    if service.startswith(("EVTCHNOP", "XENMEM", "RaiseTPL", "RestoreTPL")):
        return
    for level in LEVELS:
        story = Story()
        with story.at(level):
            story.service(service)
        rules = [finding.rule for finding in check(story.reading)]
        assert rules == (["too-high"] if level > LIMIT[service] else []), level


def test_limits_are_those_of_real_services() -> None:
    """A name that is spelled wrongly would limit nothing."""
    assert set(LIMITS) <= set(CALLS)


@pytest.mark.parametrize(("level", "new", "wrong"), [(8, 8, False), (8, 16, False), (16, 8, True), (16, 15, True)])
def test_raise_never_lowers(level: int, new: int, wrong: bool) -> None:
    """The same level is legal."""
    story = Story()
    with story.at(level):
        story.service("RaiseTPL", BUS, EfiStatus.SUCCESS, new)
    assert [finding.rule for finding in check(story.reading)] == (["raise-lowers"] if wrong else [])


@pytest.mark.parametrize(("level", "new", "wrong"), [(8, 8, False), (16, 8, False), (8, 16, True), (4, 5, True)])
def test_restore_never_raises(level: int, new: int, wrong: bool) -> None:
    """The same level is legal."""
    story = Story()
    with story.at(level):
        story.service("RestoreTPL", BUS, EfiStatus.SUCCESS, new)
    assert [finding.rule for finding in check(story.reading)] == (["restore-raises"] if wrong else [])


def test_other_calls_have_no_level() -> None:
    """A hypercall is the hypervisor's, even where it has the name of a service."""
    story = Story()
    with story.at(Tpl.HIGH_LEVEL):
        story.add(Kind.HYPERCALL, BUS, "AllocatePool", (1,), 0)
        story.add(Kind.INJECTED, BUS, "RaiseTPL", (4,))
    assert check(story.reading) == []


def test_the_findings_name_levels_place_and_answer() -> None:
    """For RaiseTPL and RestoreTPL with what was asked for."""
    story = Story()
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("RaiseTPL", BUS, EfiStatus.SUCCESS, 8)
        story.service("RestoreTPL", BUS, EfiStatus.SUCCESS, 31)
        story.service("WaitForEvent", BUS, EfiStatus.UNSUPPORTED)
    place = "at TPL_NOTIFY, inside the notification of XenBusDxe; it answered"
    assert [finding.seen for finding in check(story.reading)] == [
        f"RaiseTPL(TPL_CALLBACK) by XenBusDxe {place} EFI_SUCCESS.",
        f"RestoreTPL(TPL_HIGH_LEVEL) by XenBusDxe {place} EFI_SUCCESS.",
        f"WaitForEvent by XenBusDxe {place} EFI_UNSUPPORTED.",
    ]
    assert [finding.step for finding in check(story.reading)] == [1, 2, 3]


def test_a_rule_that_breaks_again_is_told_once() -> None:
    """A wait that polls would say it a thousand times; another service, or another driver, is another finding."""
    story = Story()
    with story.at(Tpl.NOTIFY):
        for agent in (BUS, BUS, BLOCK):
            story.service("WaitForEvent", agent, EfiStatus.UNSUPPORTED)
        story.service("UnloadImage")
    assert [(finding.agent, finding.subject, finding.step) for finding in check(story.reading)] == [
        (BUS, "WaitForEvent", 0),
        (BLOCK, "WaitForEvent", 2),
        (BUS, "UnloadImage", 3),
    ]


@pytest.mark.parametrize(("level", "blamed"), [(Tpl.NOTIFY, True), (17, False), (Tpl.HIGH_LEVEL, False)])
def test_who_was_entered_too_high_did_not_choose_to_be_there(level: int, blamed: bool) -> None:
    """A Stop at TPL_NOTIFY is legal, and then it must not call what needs less; above, its caller is wrong."""
    story = Story()
    with story.at(level), story.entry("Stop"), story.at(Tpl.HIGH_LEVEL):
        story.service("Stall")
        story.service("AllocatePool")
    assert [finding.rule for finding in check(story.reading)] == (["too-high"] if blamed else [])


def test_the_innermost_entry_counts() -> None:
    """The outer one was entered at TPL_APPLICATION, but the code that calls runs in the inner one."""
    story = Story()
    with story.entry("Start"):
        with story.at(Tpl.HIGH_LEVEL), story.service("SignalEvent"), story.entry("Notify", BLOCK):
            story.service("AllocatePool", BLOCK)
        story.entry("Supported")
    assert check(story.reading) == []


@pytest.mark.parametrize("agent", ["third-party", "os-loader", "firmware"])
def test_the_environment_may_do_as_it_likes(agent: str) -> None:
    """At any level, and it may leave the level as it likes."""
    story = Story()
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("RaiseTPL", agent, EfiStatus.SUCCESS, 4)
        story.service("WaitForEvent", agent)
    story.entry("Notify", agent, returned=16)
    assert check(story.reading) == []


def test_a_function_returns_at_its_level() -> None:
    """With both levels and the place."""
    story = Story()
    with story.notification(BLOCK), story.service("DisconnectController", BLOCK):
        story.entry("Stop", returned=16)
    (finding,) = check(story.reading)
    assert finding.signature == "tpl/not-restored/XenBusDxe/Stop"
    assert (finding.step, finding.seen) == (
        2,
        "XenBusDxe entered Stop at TPL_CALLBACK, inside DisconnectController by XenPvBlkDxe, "
        "inside the notification of XenPvBlkDxe, and returned at TPL_NOTIFY.",
    )


@pytest.mark.parametrize("inner", [BLOCK, "third-party"])
def test_the_innermost_one_that_left_the_level_is_told(inner: str) -> None:
    """The functions around it cannot know; a later one may do it again."""
    story = Story()
    with story.entry("Start", returned=16), story.service("SignalEvent"):
        story.entry("Notify", inner, returned=16)
    expected = [BLOCK] if inner == BLOCK else []
    assert [finding.agent for finding in check(story.reading)] == expected
    story.entry("Start", returned=16)
    assert [finding.agent for finding in check(story.reading)] == [*expected, BUS]


def test_entries_that_return_at_their_level_hide_nothing() -> None:
    """The one that does not comes behind them."""
    story = Story()
    story.entry("Supported")
    story.entry("Start", returned=16)
    assert [finding.step for finding in check(story.reading)] == [1]
