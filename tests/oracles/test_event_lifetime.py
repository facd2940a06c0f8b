"""What a closed event is, whose a repeated notification is, and how it is told."""

from __future__ import annotations

import pytest

from oracles.event_lifetime import check
from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import EVT_NOTIFY_SIGNAL, EVT_TIMER
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, EVENT, LOADER, Story

EXIT_GROUP = guids.EVENT_GROUP_EXIT_BOOT_SERVICES
BEFORE_GROUP = guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES
REFUSED = EfiStatus.INVALID_PARAMETER


@pytest.mark.parametrize("service", ["SignalEvent", "CheckEvent", "SetTimer", "WaitForEvent", "RegisterProtocolNotify"])
def test_no_service_may_take_a_closed_event(service: str) -> None:
    """Wherever the event stands among the arguments; before it was closed it may."""
    story = Story()
    story.service("CreateEvent")
    story.service(service)
    story.service("CloseEvent")
    assert story.signatures() == []
    story.service(service, BUS, REFUSED)
    assert story.signatures() == [f"event-lifetime/use-after-close/XenBusDxe/{service}"]


def test_the_findings_say_who_closed_it_and_when() -> None:
    """With the place of the use, and the answer."""
    story = Story()
    with story.notification():
        story.service("CloseEvent")
        story.service("SignalEvent", BUS, REFUSED)
        story.service("CloseEvent", BLOCK, REFUSED)
    use, close = check(story.reading)
    assert use.seen == (
        "SignalEvent by XenBusDxe at TPL_CALLBACK, inside the notification of XenBusDxe; it answered "
        "EFI_INVALID_PARAMETER. XenBusDxe had closed the event in step 1."
    )
    assert (use.step, close.step) == (2, 3)
    assert close.signature == "event-lifetime/double-close/XenPvBlkDxe/CloseEvent"


def test_waiting_for_several_events_uses_each() -> None:
    """One closed event among others is enough."""
    story = Story()
    story.service("CloseEvent", BUS, EfiStatus.SUCCESS, EVENT + 1)
    story.service("WaitForEvent", BUS, REFUSED, (EVENT, EVENT + 1))
    assert [finding.rule for finding in check(story.reading)] == ["use-after-close"]


def test_a_close_that_was_refused_closes_nothing() -> None:
    """The event goes on; the close may be tried again."""
    story = Story()
    with story.service("CloseEvent", BUS, REFUSED):
        story.injected("CloseEvent")
    story.service("SignalEvent")
    story.service("CloseEvent")
    assert check(story.reading) == []


@pytest.mark.parametrize("closer", ["third-party", BUS])
def test_what_somebody_else_closed_is_no_fault_of_the_driver(closer: str) -> None:
    """Nor is what the environment does with a closed event."""
    story = Story()
    story.service("CloseEvent", closer)
    story.service("CloseEvent", BUS if closer == "third-party" else "third-party", REFUSED)
    story.service("SignalEvent", BUS if closer == "third-party" else "third-party", REFUSED)
    assert check(story.reading) == []


@pytest.mark.parametrize(
    ("arguments", "sort"),
    [
        ((0x201, 8, "notify", 0), "EVENT_GROUP_EXIT_BOOT_SERVICES"),
        ((EVT_NOTIFY_SIGNAL, 8, "notify", 0, BEFORE_GROUP), "EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES"),
        ((EVT_NOTIFY_SIGNAL, 8, "notify", 0, "01234567-my-own"), "01234567-my-own"),
        ((EVT_TIMER | EVT_NOTIFY_SIGNAL, 8, "notify", 0), "timer"),
        ((EVT_NOTIFY_SIGNAL, 8, "notify", 0, True), "event"),
        ((0, 0, "", None), "event"),
    ],
)
def test_an_event_that_is_left_is_told_by_its_sort(arguments: tuple[object, ...], sort: str) -> None:
    """The group that it belongs to, by name where it has one."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("CreateEventEx", BUS, EfiStatus.SUCCESS, *arguments)
    (finding,) = check(story.reading)
    assert finding.signature == f"event-lifetime/left-behind/XenBusDxe/Start-{sort}"
    assert (finding.step, finding.seen) == (
        0,
        "XenBusDxe called CreateEventEx in step 1, inside Start of XenBusDxe; Start() of XenBusDxe answered "
        "EFI_DEVICE_ERROR, and it was not given back.",
    )


def test_memory_that_is_left_is_no_event() -> None:
    """It has a family of its own."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool")
    assert check(story.reading) == []


@pytest.mark.parametrize(("group", "signal"), [(EXIT_GROUP, "exit-group"), (BEFORE_GROUP, "before-group")])
def test_each_signal_of_the_firmware_notifies_an_event_once(group: str, signal: str) -> None:
    """A second time belongs to the core where nobody has signalled a member."""
    story = Story()
    story.add(Kind.EXIT, LOADER, signal)
    for event in (EVENT, EVENT + 1):
        with story.notification(BUS, 8, event, group):
            pass
    assert check(story.reading) == []
    story.add(Kind.EXIT, LOADER, "attempt")
    with story.notification(BLOCK, 8, EVENT, group):
        pass
    (finding,) = check(story.reading)
    assert finding.signature == f"event-lifetime/notified-twice/DxeCore/{guids.NAMES[group]}"
    assert (finding.step, finding.seen) == (
        4,
        "The notification of XenPvBlkDxe was entered for the second time, and nobody had signalled the group again.",
    )


@pytest.mark.parametrize(
    ("create", "group"),
    [("CreateEvent", EXIT_GROUP), ("CreateEventEx", BEFORE_GROUP)],
)
def test_who_signals_a_member_answers_for_the_whole_group(create: str, group: str) -> None:
    """Also where the firmware has not signalled it at all, and whoever is notified; the last one who did so."""
    story = Story()
    story.service(create, BLOCK)
    story.service("SignalEvent", BLOCK)
    story.service("SignalEvent", BUS)
    for _ in range(4):
        with story.notification(BLOCK, 8, EVENT + 7, group):
            pass
    story.service("SignalEvent", BLOCK)
    findings = check(story.reading)
    assert {finding.agent for finding in findings} == {BUS}
    assert [finding.seen.split("entered for the ")[1].split(";")[0] for finding in findings] == [
        *("first time", "second time", "third time", "4th time"),
    ]
    assert findings[0].seen.endswith("; XenBusDxe had signalled the group in step 2.")


@pytest.mark.parametrize(
    ("service", "arguments"),
    [
        ("InstallConfigurationTable", (EXIT_GROUP, 0x2000)),
        ("RegisterProtocolNotify", (guids.XENIO_PROTOCOL, EVENT)),
        ("SetTimer", (EVENT, 2, 0)),
        ("CheckEvent", (EVENT,)),
        ("WaitForEvent", ((EVENT + 5, EVENT),)),
    ],
)
def test_who_has_the_group_signalled_answers_for_it(service: str, arguments: tuple[object, ...]) -> None:
    """Every way in which the core comes to notify a member; a call that was refused, or that came later, is none."""
    story = Story()
    story.service("CreateEvent", BLOCK)
    story.service(service, BUS, EfiStatus.SUCCESS, *arguments)
    story.service(service, BLOCK, REFUSED, *arguments)
    with story.notification(BLOCK, 8, EVENT, EXIT_GROUP):
        pass
    story.service(service, BLOCK, EfiStatus.SUCCESS, *arguments)
    (finding,) = check(story.reading)
    assert finding.agent == BUS
    assert finding.seen.endswith(f"; XenBusDxe had called {service} for the group in step 1.")


@pytest.mark.parametrize("status", [EfiStatus.NOT_READY, None])
def test_a_check_that_finds_nothing_and_a_wait_without_end_may_notify(status: EfiStatus | None) -> None:
    """The notification of an event to wait for runs while it is waited for."""
    story = Story()
    story.service("CreateEvent", BLOCK)
    story.service("CheckEvent", BUS, status)
    with story.notification(BLOCK, 8, EVENT, EXIT_GROUP):
        pass
    assert [finding.agent for finding in check(story.reading)] == [BUS]


def test_a_configuration_table_signals_only_the_group_that_it_is_named_for() -> None:
    """Another table explains nothing."""
    story = Story()
    story.service("CreateEvent", BLOCK)
    story.service("InstallConfigurationTable", BUS, EfiStatus.SUCCESS, BEFORE_GROUP, EVENT)
    with story.notification(BLOCK, 8, EVENT, EXIT_GROUP):
        pass
    assert [finding.agent for finding in check(story.reading)] == ["DxeCore"]


def test_signalling_an_event_of_another_group_explains_nothing() -> None:
    """It is not the member of that group."""
    story = Story()
    story.service("CreateEventEx")
    story.service("SignalEvent")
    with story.notification(BLOCK, 8, EVENT, EXIT_GROUP):
        pass
    assert [finding.agent for finding in check(story.reading)] == ["DxeCore"]


def test_a_third_party_that_signals_the_group_is_nobodys_fault() -> None:
    """It is the environment's doing."""
    story = Story()
    story.service("CreateEvent")
    story.service("SignalEvent", "third-party")
    with story.notification(BUS, 8, EVENT, EXIT_GROUP):
        pass
    assert check(story.reading) == []


def test_numbers_that_are_no_events_are_not_taken_for_them() -> None:
    """A delay type, a trigger time or a flag may be the number of a closed event."""
    story = Story()
    story.service("CloseEvent", BUS, EfiStatus.SUCCESS, 2)
    story.service("SetTimer", BUS, EfiStatus.SUCCESS, EVENT, 2, 2)
    story.service("RegisterProtocolNotify", BUS, EfiStatus.SUCCESS, guids.XENIO_PROTOCOL, EVENT, 2)
    assert check(story.reading) == []
