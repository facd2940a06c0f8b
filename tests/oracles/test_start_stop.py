"""What Supported, Start and Stop owe, how they may come, and whose fault it is where they come otherwise."""

from __future__ import annotations

import pytest

from oracles.start_stop import check
from reference_impl.trace import Kind, Phase
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BY_DRIVER, EXCLUSIVE
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, CHILD, CONTROLLER, FOR_CHILD, LOADER, SECOND_CHILD, Story

FAILED, STARTED, SUCCESS = EfiStatus.DEVICE_ERROR, EfiStatus.ALREADY_STARTED, EfiStatus.SUCCESS
CHANGES = (
    *("UninstallProtocolInterface", "UninstallMultipleProtocolInterfaces", "ReinstallProtocolInterface"),
    *("ConnectController", "DisconnectController"),
)


def signatures(story: Story) -> list[str]:
    """What the oracle reports, without its name."""
    return [finding.signature.partition("/")[2] for finding in check(story.reading)]


# ---- what is left -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "status", "rule"),
    [
        ("Supported", SUCCESS, "supported-changes"),
        ("Start", FAILED, "failed-start-leaves"),
        ("EntryPoint", FAILED, "failed-start-leaves"),
    ],
)
def test_each_entry_has_its_rule_for_what_it_leaves(entry: str, status: EfiStatus, rule: str) -> None:
    """An interface by the name of its protocol, or its GUID."""
    story = Story()
    with story.entry(entry, BLOCK, status):
        story.service("InstallProtocolInterface", BLOCK)
        story.service("InstallProtocolInterface", BLOCK, SUCCESS, CHILD, "my-own", 0, 1)
        story.hypercall("EVTCHNOP_alloc_unbound", BLOCK)
    assert signatures(story) == [f"{rule}/XenPvBlkDxe/{what}" for what in ("BLOCK_IO", "my-own", "event-channel")]
    assert check(story.reading)[0].seen == (
        f"XenPvBlkDxe called InstallProtocolInterface in step 1, inside {entry} of XenPvBlkDxe; {entry}() of XenPvBlkDxe "
        f"answered {status}, and it was not given back."
    )


@pytest.mark.parametrize("resource", ["pool", "event", "open"])
def test_what_has_a_family_of_its_own_is_not_told_here(resource: str) -> None:
    """Memory, events and opens."""
    service = {"pool": "AllocatePool", "event": "CreateEvent", "open": "OpenProtocol"}[resource]
    story = Story()
    with story.entry("Start", BUS, FAILED):
        story.service(service)
    assert signatures(story) == []


def test_unload_leaves_like_a_stop() -> None:
    """What the entry point had installed."""
    story = Story()
    with story.entry("EntryPoint"):
        story.service("InstallProtocolInterface")
    story.entry("Unload")
    assert signatures(story) == ["stop-leaves/XenBusDxe/BLOCK_IO"]


@pytest.mark.parametrize("service", CHANGES)
def test_supported_does_nothing_that_others_see(service: str) -> None:
    """With the place; in Start it is nobody's business."""
    story = Story()
    with story.entry("Supported"):
        story.service(service)
    (finding,) = check(story.reading)
    assert finding.signature == f"start-stop/supported-changes/XenBusDxe/{service}"
    assert (finding.step, finding.seen) == (
        1,
        f"{service} by XenBusDxe at TPL_APPLICATION, inside Supported of XenBusDxe.",
    )
    story = Story()
    with story.entry("Start"):
        story.service(service)
    story.service(service)
    assert signatures(story) == []


def test_supported_leaves_the_connection_alone() -> None:
    """Neither taken into use nor reset, also by way of the bus's protocol; a third party's entry is its own business."""
    for agent, expected in ((BLOCK, ["ring", "grant-table"]), ("third-party", [])):
        story = Story()
        with story.entry("Supported", agent):
            story.connection("ring", 1)
            story.reset("grant-table", 0)
        assert signatures(story) == [f"supported-changes/XenPvBlkDxe/{what}" for what in expected]


# ---- lies and children --------------------------------------------------------------------------------------------


def test_a_stop_that_lies_is_told_and_what_it_keeps_is_not() -> None:
    """The driver still manages, so nothing is due, and the next Stop is none on what was not started."""
    story = Story()
    with story.entry("Start"):
        story.service("OpenProtocol")
        story.service("InstallProtocolInterface")
    story.entry("Stop")
    (finding,) = check(story.reading)
    assert (finding.step, finding.seen) == (
        3,
        "Stop() of XenBusDxe answered EFI_SUCCESS, and it still manages the controller.",
    )
    with story.entry("Stop"):
        story.service("CloseProtocol")
        story.service("UninstallProtocolInterface")
    assert signatures(story) == ["stop-lies/XenBusDxe/Stop"]


def bus_with_two_children() -> Story:
    """The bus has two children."""
    story = Story()
    with story.entry("Start"):
        for child in (CHILD, SECOND_CHILD):
            story.service("OpenProtocol", BUS, SUCCESS, *FOR_CHILD[:3], child, FOR_CHILD[4])
    return story


@pytest.mark.parametrize(
    ("listed", "closed", "seen"),
    [
        ((CHILD,), (CHILD,), ""),
        ((CHILD, SECOND_CHILD), (CHILD, SECOND_CHILD), ""),
        ((CHILD, SECOND_CHILD), (CHILD,), "for 2 children; 1 of them are still there."),
        ((CHILD,), (), "for 1 children; 1 of them are still there."),
        ((CHILD,), (CHILD, SECOND_CHILD), "for 1 children; 1 others went with them."),
        ((CHILD,), (SECOND_CHILD,), "for 1 children; 1 of them are still there; 1 others went with them."),
    ],
)
def test_stop_ends_exactly_its_children(listed: tuple[int, ...], closed: tuple[int, ...], seen: str) -> None:
    """Neither fewer nor more."""
    story = bus_with_two_children()
    with story.entry("Stop", BUS, SUCCESS, CONTROLLER, listed):
        for child in closed:
            story.service("CloseProtocol", BUS, SUCCESS, *FOR_CHILD[:3], child)
    findings = check(story.reading)
    assert [finding.signature for finding in findings] == (
        ["start-stop/stop-wrong-children/XenBusDxe/children"] if seen else []
    )
    assert [finding.seen for finding in findings] == (
        [f"Stop() of XenBusDxe answered EFI_SUCCESS {seen}"] if seen else []
    )
    assert all(finding.step == 3 for finding in findings)


def test_a_stop_of_children_that_fails_owes_nothing() -> None:
    """And children of another controller are another bus's."""
    story = bus_with_two_children()
    story.entry("Stop", BUS, FAILED, CONTROLLER, (CHILD,))
    story.entry("Start", BUS, SUCCESS, 30, None)
    story.entry("Stop", BUS, SUCCESS, 30, (CHILD,))
    assert signatures(story) == []


# ---- from Start to Stop -------------------------------------------------------------------------------------------


def test_a_start_that_dangles_is_told() -> None:
    """The sentence says why it cannot be: it manages nothing there."""
    story = Story()
    story.entry("Start", BUS, FAILED)
    story.entry("Start", BUS, STARTED)
    (finding,) = check(story.reading)
    assert (finding.agent, finding.step, finding.seen) == (
        BUS,
        1,
        "Start() of XenBusDxe answered EFI_ALREADY_STARTED; it manages nothing there, and a Start() of it has failed before.",
    )


@pytest.mark.parametrize("before", ["nothing", "success", "another driver"])
def test_already_started_may_be_true(before: str) -> None:
    """It manages the controller; or nothing has failed; or what failed was another driver's."""
    story = Story()
    if before == "success":
        story.entry("Start", BUS, FAILED)
        story.entry("Start")
    elif before == "another driver":
        story.entry("Start", BLOCK, FAILED)
    story.entry("Start", BUS, STARTED)
    assert signatures(story) == []


def test_a_failed_start_that_is_over_may_be_followed_by_a_clean_one() -> None:
    """And after its Stop, EFI_ALREADY_STARTED dangles again."""
    story = Story()
    story.entry("Start", BUS, FAILED)
    story.entry("Start")
    story.entry("Stop")
    assert signatures(story) == []
    story.entry("Start", BUS, STARTED)
    assert "dangling-start/XenBusDxe/Start" in signatures(story)


def test_an_answer_of_an_inner_call_is_only_handed_on() -> None:
    """What stands before or behind the Start is no inner call."""
    story = Story()
    story.entry("Start", BUS, FAILED)
    story.service("OpenProtocol", BUS, STARTED)
    story.entry("Start", BUS, STARTED)
    story.service("OpenProtocol", BUS, STARTED)
    assert signatures(story) == ["dangling-start/XenBusDxe/Start"]


def test_the_core_stops_only_what_is_managed() -> None:
    """Told with the place; a Stop that failed ended nothing."""
    story = Story()
    story.entry("Start", BLOCK)
    story.entry("Stop", BLOCK, FAILED)
    story.entry("Stop", BLOCK, SUCCESS, CONTROLLER, (CHILD,))
    story.entry("Stop", BLOCK)
    assert signatures(story) == []
    with story.service("DisconnectController"):
        story.entry("Stop", BLOCK, FAILED)
    (finding,) = check(story.reading)
    assert finding.signature == "start-stop/stop-not-started/DxeCore/Stop"
    assert (finding.step, finding.seen) == (
        5,
        "Stop() of XenPvBlkDxe was entered, inside DisconnectController by XenBusDxe, for what it does not manage.",
    )


def test_a_third_party_may_stop_anything() -> None:
    """And the core may come too late where it has stopped something behind the core's back."""
    story = Story()
    story.entry("Start", BLOCK)
    with story.notification("third-party"):
        story.entry("Stop", BLOCK)
        story.entry("Stop", BLOCK, FAILED)
    story.entry("Stop", BLOCK, FAILED)
    assert signatures(story) == []
    story.entry("Start", BLOCK)
    story.entry("Stop", BLOCK)
    story.entry("Stop", BLOCK, FAILED)
    assert signatures(story) == ["stop-not-started/DxeCore/Stop"]


# ---- nesting ------------------------------------------------------------------------------------------------------


def test_a_stop_that_is_reentered_belongs_to_whose_code_called() -> None:
    """Also where another driver's notification comes in between; another controller's Stop is another one."""
    story = Story()
    for controller in (CONTROLLER, CHILD):
        story.entry("Start", BUS, SUCCESS, controller, None)
    with story.entry("Stop", BUS, SUCCESS, CONTROLLER, ()), story.entry("Notify", BLOCK):
        story.entry("Stop", BUS, FAILED, CHILD, ())
        story.entry("Stop", BUS, FAILED)
    (finding,) = check(story.reading)
    assert (finding.signature, finding.step) == ("start-stop/stop-reentered/XenPvBlkDxe/Stop", 5)
    assert finding.seen == (
        "Stop() of XenBusDxe was entered for the same controller, inside the notification of XenPvBlkDxe, "
        "inside Stop of XenBusDxe."
    )


def test_another_drivers_stop_on_the_same_controller_is_no_reentry() -> None:
    """Nor is one that a third party interrupts with."""
    story = Story()
    for agent in (BUS, BLOCK):
        story.entry("Start", agent)
    with story.entry("Stop", BUS, FAILED):
        story.entry("Stop", BLOCK, FAILED)
        with story.entry("Notify", "third-party"):
            story.entry("Stop", BUS, FAILED)
    assert signatures(story) == []


def test_a_driver_that_connects_what_is_being_stopped_is_told() -> None:
    """With the place; where the core itself connects again after a refused uninstallation, that is its way."""
    story = Story()
    story.entry("Start", BLOCK)
    with story.entry("Stop", BLOCK, FAILED):
        with story.service("UninstallProtocolInterface", BLOCK, EfiStatus.ACCESS_DENIED):
            story.entry("Start", BUS, FAILED)
        with story.service("ConnectController", BLOCK):
            story.entry("Start", BUS, FAILED, CHILD, None)
        with story.service("ReinstallProtocolInterface", BLOCK):
            story.core("allocate", "ConnectController", BLOCK)
            story.entry("Start", BUS, FAILED)
    assert signatures(story) == []
    with story.entry("Stop", BLOCK, FAILED), story.service("ConnectController", BLOCK):
        story.core("allocate", "OpenProtocol", BLOCK)
        story.entry("Start", BUS, FAILED)
    (finding,) = check(story.reading)
    assert finding.signature == "start-stop/start-during-stop/XenPvBlkDxe/ConnectController"
    assert finding.seen == (
        "Start() of XenBusDxe was entered, inside ConnectController by XenPvBlkDxe, inside Stop of XenPvBlkDxe, "
        "and the controller was being stopped."
    )


def test_who_disconnects_at_the_exit_is_the_outermost_driver() -> None:
    """The bus's notification, not the Stop in which the next one is entered."""
    story = Story()
    for agent, controller in ((BUS, CONTROLLER), (BLOCK, CHILD)):
        story.entry("Start", agent, SUCCESS, controller, None)
    with story.exit(), story.notification(), story.service("DisconnectController"):
        with story.entry("Stop", BUS, SUCCESS, CONTROLLER, (CHILD,)):
            story.entry("Stop", BLOCK, SUCCESS, CHILD, ())
        story.entry("Stop")
    findings = check(story.reading)
    assert {finding.signature for finding in findings} == {"start-stop/stop-during-exit/XenBusDxe/Stop"}
    assert sorted(finding.seen for finding in findings)[-1] == (
        "Stop() of XenPvBlkDxe was entered, inside Stop of XenBusDxe, inside DisconnectController by XenBusDxe, "
        "inside the notification of XenBusDxe."
    )


@pytest.mark.parametrize("phase", [Phase.BEFORE, Phase.FAILED, Phase.RUNTIME])
def test_other_phases_are_free(phase: Phase) -> None:
    """In the BEFORE group everything may be used; and what the loader stops itself is nobody's."""
    story = Story()
    story.entry("Start", BLOCK)
    story.entry("Start", BLOCK, SUCCESS, CHILD, None)
    with story.exit(), story.service("DisconnectController", LOADER):
        story.entry("Stop", BLOCK)
    story.trace.phase = int(phase)
    with story.notification():
        story.entry("Stop", BLOCK, SUCCESS, CHILD, ())
    assert signatures(story) == []


# ---- once more ----------------------------------------------------------------------------------------------------


def restarted(*between: str, status: EfiStatus = SUCCESS, second: tuple[str, ...] = ("CreateEvent",)) -> Story:
    """Start and Stop with an event, what comes between, and another Start that takes what `second` says."""
    story = Story()
    with story.entry("Start"):
        story.service("CreateEvent")
    with story.entry("Stop"):
        story.service("CloseEvent")
    for operation in between:
        story.operation(operation)
    with story.entry("Start", BUS, status):
        for service in second:
            story.service(service)
    return story


def test_a_start_that_takes_something_else_is_told_with_the_difference() -> None:
    """By sorts of resource and how many of each."""
    (finding,) = check(restarted(second=("CreateEvent", "AllocatePool", "AllocatePages")).reading)
    assert (finding.signature, finding.step) == ("start-stop/restart-differs/XenBusDxe/Start", 4)
    assert finding.seen == (
        "Start() of XenBusDxe answered EFI_SUCCESS after a Stop(); it took {'event': 1, 'pages': 1, 'pool': 1} instead of "
        "{'event': 1}, in step 0."
    )


def test_a_start_that_fails_the_second_time_is_told() -> None:
    """It had succeeded."""
    (finding,) = check(restarted(status=FAILED, second=()).reading)
    assert finding.seen == "Start() of XenBusDxe answered EFI_DEVICE_ERROR after a Stop(); it had succeeded, in step 0."


@pytest.mark.parametrize(
    "operation", ["connect", "disconnect", "request", "time", "allocate", "free", "exit", "load", "unload"]
)
def test_operations_that_leave_the_platform_alone_excuse_nothing(operation: str) -> None:
    """The same Start is asked for in the same machine."""
    assert signatures(restarted(operation, second=())) == ["restart-differs/XenBusDxe/Start"]


@pytest.mark.parametrize(
    "operation", ["remove-device", "add-device", "backend", "fail", "vanish", "peer", "third-party"]
)
def test_a_platform_that_has_changed_excuses_everything(operation: str) -> None:
    """What happened before the first change is still judged."""
    assert signatures(restarted(operation, second=())) == []
    story = restarted(second=())
    story.operation(operation)
    assert signatures(story) == ["restart-differs/XenBusDxe/Start"]


def test_a_call_that_was_made_to_fail_excuses_everything_behind_it() -> None:
    """The environment has had its hand in it."""
    story = Story()
    story.entry("Start")
    story.entry("Stop")
    with story.entry("Start", BUS, FAILED), story.service("AllocatePool", BUS, EfiStatus.OUT_OF_RESOURCES):
        story.injected("AllocatePool")
    assert signatures(story) == []


def test_only_a_restart_is_compared() -> None:
    """Without a Stop in between, on another controller, by another driver, or where the first Start had failed."""
    story = Story()
    story.entry("Start", BLOCK, FAILED)
    with story.entry("Start"):
        story.service("AllocatePool")
    story.entry("Start", BUS, STARTED)
    story.entry("Start", BUS, SUCCESS, CHILD, None)
    story.entry("Start", BLOCK)
    with story.entry("Stop", BUS, FAILED):
        pass
    story.entry("Start", BUS, STARTED)
    story.entry("Start", BUS, None)
    assert signatures(story) == []


def test_what_the_environment_starts_and_stops_is_not_compared() -> None:
    """A third party's Start is no restart."""
    story = Story()
    with story.entry("Start"):
        story.service("CreateEvent")
    with story.entry("Stop"):
        story.service("CloseEvent")
    with story.entry("Notify", "third-party"):
        story.entry("Start", BUS, FAILED)
    assert signatures(story) == []


def test_records_that_are_no_drivers_are_passed_over() -> None:
    """Nothing of the platform is judged."""
    story = Story()
    story.add(Kind.XENBUS_STATE, "backend", "device/vbd/0", (2, 4))
    story.service("InstallProtocolInterface", "firmware", SUCCESS, 12, guids.DRIVER_BINDING_PROTOCOL, 0, 1)
    assert signatures(story) == []


def test_other_opens_are_no_children() -> None:
    """What the bus has open EXCLUSIVE for a child, or closes for itself, is none of the children that Stop names."""
    story = bus_with_two_children()
    story.service("OpenProtocol", BUS, SUCCESS, CONTROLLER, "guid", FOR_CHILD[2], CHILD, EXCLUSIVE)
    story.service("OpenProtocol", BUS, SUCCESS, 20, "guid", FOR_CHILD[2], 20, BY_DRIVER)
    with story.entry("Stop", BUS, SUCCESS, CONTROLLER, (CHILD,)):
        story.service("CloseProtocol", BUS, SUCCESS, *FOR_CHILD[:3], CHILD)
        story.service("CloseProtocol", BUS, SUCCESS, 20, "guid", FOR_CHILD[2], 20)
    assert signatures(story) == []


def test_the_outermost_driver_is_told_however_deep_it_is() -> None:
    """Three drivers inside one another: the one whose notification it is."""
    story = Story()
    for agent in (BLOCK, "Other"):
        story.entry("Start", agent)
    with story.exit(), story.notification(), story.entry("Stop", BLOCK):
        story.entry("Stop", "Other")
    assert {finding.agent for finding in check(story.reading)} == {BUS}


@pytest.mark.parametrize(
    ("attributes", "told"), [(BY_DRIVER, False), (BY_DRIVER | EXCLUSIVE, False), (EXCLUSIVE, True)]
)
def test_what_is_left_open_by_driver_makes_the_core_stop(attributes: int, told: bool) -> None:
    """The core takes the driver for one that manages; an open of another sort does not say so, nor does memory."""
    story = Story()
    with story.entry("Start", BUS, FAILED):
        story.service("OpenProtocol", BUS, SUCCESS, *FOR_CHILD[:3], CONTROLLER, attributes)
        story.service("AllocatePages", BUS, SUCCESS, 0, 4, BY_DRIVER, 0)
    story.entry("Stop", BUS, FAILED)
    assert signatures(story) == (["stop-not-started/DxeCore/Stop"] if told else [])


def test_what_the_environment_starts_hides_no_restart() -> None:
    """A third party's Start comes first, and then one that fails."""
    story = Story()
    story.entry("Start")
    story.entry("Stop")
    with story.entry("Notify", "third-party"):
        story.entry("Start", BUS, FAILED)
    story.entry("Start", BUS, FAILED)
    assert signatures(story) == ["restart-differs/XenBusDxe/Start"]


# ---- after Unload ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Supported", "Start", "Stop"])
def test_a_binding_that_is_entered_after_unload_is_told_once(name: str) -> None:
    """With the entry that shows it first; where notifications come from is told with the events."""
    story = Story()
    story.entry("Start", BLOCK)
    story.entry("Notify", BLOCK)
    story.entry("Unload", BLOCK)
    story.entry("Notify", BLOCK)
    story.entry(name, BLOCK, EfiStatus.DEVICE_ERROR)
    story.entry("Supported", BLOCK)
    found = [finding for finding in check(story.reading) if finding.rule == "entered-after-unload"]
    assert [(finding.signature, finding.step) for finding in found] == [
        (f"start-stop/entered-after-unload/XenPvBlkDxe/{name}", 4)
    ]
    assert found[0].seen == f"{name}() of XenPvBlkDxe was entered, though Unload() of XenPvBlkDxe answered EFI_SUCCESS."


def test_each_driver_that_is_entered_after_its_unload_is_told() -> None:
    """Also where another's Unload, inside of code that goes on, says nothing."""
    story = Story()
    with story.entry("Stop", BLOCK):
        story.entry("Unload", BLOCK)
    for agent in (BUS, BLOCK):
        story.entry("Unload", agent)
    for agent in (BUS, BLOCK):
        story.entry("Supported", agent)
    told = [each for each in signatures(story) if "unload" in each]
    assert told == ["entered-after-unload/XenBusDxe/Supported", "entered-after-unload/XenPvBlkDxe/Supported"]


def test_what_was_loaded_again_may_be_entered() -> None:
    """By LoadImage, or at its entry point; the other driver's return is not this one's."""
    for loads, told in ((BUS, []), (BLOCK, ["entered-after-unload/XenBusDxe/Supported"])):
        story = Story()
        story.entry("Unload")
        story.service("LoadImage", LOADER, EfiStatus.SUCCESS, loads)
        story.entry("Supported")
        assert signatures(story) == told
    story = Story()
    story.entry("Unload")
    story.entry("EntryPoint")
    story.entry("Supported")
    assert signatures(story) == []


def test_what_others_do_to_an_image_is_not_its_doing() -> None:
    """An image that is torn out, an Unload inside of code that goes on, and an entry by a third party."""
    story = Story()
    story.operation("tear-out")
    story.entry("Unload")
    story.operation("connect")
    story.entry("Supported")
    with story.entry("Stop", BLOCK):
        story.entry("Unload", BLOCK)
        story.entry("Supported", BLOCK)
    story.entry("Unload", BLOCK)
    with story.entry("Notify", "third-party"):
        story.entry("Supported", BLOCK)
    assert [each for each in signatures(story) if "unload" in each] == []
