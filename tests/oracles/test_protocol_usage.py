"""What is open, what cannot be closed, and what is gone."""

from __future__ import annotations

import pytest

from oracles.protocol_usage import check
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BY_DRIVER, GET_PROTOCOL
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BINDING, BLOCK, BUS, CHILD, CONTROLLER, FOR_CHILD, POOL, Story

REFUSED, MISSING, DENIED = EfiStatus.INVALID_PARAMETER, EfiStatus.NOT_FOUND, EfiStatus.ACCESS_DENIED


def rules(story: Story) -> list[str]:
    """What the oracle reports, in its order."""
    return [finding.rule for finding in check(story.reading)]


def with_a_child() -> Story:
    """The bus has made a child and has a protocol open for it."""
    story = Story()
    with story.entry("Start"):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD)
    return story


def test_a_stop_that_forgets_one_open_leaves_it() -> None:
    """It names the protocol, or its GUID, and tells where it was opened."""
    story = Story()
    with story.entry("Start"):
        story.service("OpenProtocol")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, CONTROLLER, "my-own", BINDING, CONTROLLER, BY_DRIVER)
    with story.entry("Stop"):
        story.service("CloseProtocol")
    (finding,) = check(story.reading)
    assert finding.signature == "protocol-usage/left-open/XenBusDxe/Stop-my-own"
    assert (finding.step, finding.seen) == (
        3,
        "XenBusDxe called OpenProtocol in step 2, inside Start of XenBusDxe; Stop() of XenBusDxe answered EFI_SUCCESS, "
        "and it was not given back.",
    )


def test_what_else_is_left_is_no_open() -> None:
    """Memory has a family of its own."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool")
    assert rules(story) == []


def test_a_child_that_goes_is_told_with_both_steps() -> None:
    """The finding is at the uninstallation, and at the bus."""
    story = with_a_child()
    story.service("UninstallMultipleProtocolInterfaces", BLOCK)
    (finding,) = check(story.reading)
    assert finding.signature == "protocol-usage/child-left-open/XenBusDxe/XENIO"
    assert (finding.step, finding.seen) == (
        3,
        "XenBusDxe opened XENIO BY_CHILD_CONTROLLER in step 2; in step 3 the last protocol of that child was "
        "uninstalled, and nobody had closed it.",
    )


def test_closing_too_late_is_the_same_mistake() -> None:
    """The record of a child that is gone cannot be closed any more: one finding, not two."""
    story = with_a_child()
    story.service("UninstallMultipleProtocolInterfaces")
    story.service("CloseProtocol", BUS, REFUSED, *FOR_CHILD[:4])
    assert rules(story) == ["child-left-open"]
    story.service("CloseProtocol", BUS, REFUSED, CONTROLLER, guids.XENIO_PROTOCOL, BINDING, 77)
    assert rules(story) == ["child-left-open", "cleanup-fails"]


def test_only_the_last_protocol_takes_the_handle_away() -> None:
    """Before that, the record may still be closed; a record of another child or by a driver is no matter."""
    story = with_a_child()
    story.service("OpenProtocol")
    story.service("UninstallProtocolInterface", BUS, EfiStatus.SUCCESS, CHILD, guids.XENBUS_PROTOCOL, 2)
    assert rules(story) == []
    story.service("CloseProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD[:4])
    story.service("UninstallProtocolInterface", BUS, EfiStatus.SUCCESS, CHILD, guids.DEVICE_PATH_PROTOCOL, 1)
    assert rules(story) == []


CLEANUP = ("CloseProtocol", "CloseEvent", "FreePool", "FreePages", "UninstallProtocolInterface")


@pytest.mark.parametrize("service", CLEANUP)
@pytest.mark.parametrize("status", [REFUSED, MISSING])
def test_cleanup_that_is_refused_for_its_arguments_is_a_finding(service: str, status: EfiStatus) -> None:
    """Wherever it is called; the sentence tells where and the answer."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service(service, BUS, status)
    (finding,) = check(story.reading)
    assert finding.signature == f"protocol-usage/cleanup-fails/XenBusDxe/{service}"
    assert (finding.step, finding.seen) == (
        1,
        f"{service} by XenBusDxe at TPL_APPLICATION, inside Start of XenBusDxe; it answered {status}.",
    )


@pytest.mark.parametrize("service", CLEANUP)
def test_cleanup_that_the_environment_refuses_is_none(service: str) -> None:
    """An armed failure, a third party's own call, a call that succeeds or never returned, or somebody who holds on."""
    story = Story()
    with story.service(service, BUS, REFUSED):
        story.injected(service)
    story.service(service, "third-party", REFUSED)
    story.service(service, BUS, DENIED)
    story.service(service, BUS, None)
    if service != "CloseEvent":
        story.service(service)
    assert rules(story) == []


def test_what_is_freed_or_closed_twice_has_rules_of_its_own() -> None:
    """Not here as well. What was never there is only here."""
    story = Story()
    with story.service("FreePool", BUS, REFUSED):
        story.misuse("double-free")
    with story.service("FreePages", BUS, MISSING):
        story.misuse("double-free")
    story.service("CloseEvent")
    story.service("CloseEvent", BUS, REFUSED)
    assert rules(story) == []
    story.service("CloseEvent", BUS, REFUSED, 99)
    story.service("FreePool", BUS, REFUSED)
    story.misuse("double-free")
    assert rules(story) == ["cleanup-fails", "cleanup-fails"]


def test_a_close_after_the_refusal_does_not_explain_it() -> None:
    """Only what was closed before; and only by a close that succeeded."""
    story = Story()
    story.service("CloseEvent", BUS, REFUSED)
    story.service("CloseEvent")
    assert rules(story) == ["cleanup-fails"]


def test_uninstalling_several_is_refused_because_somebody_holds_on_or_for_its_arguments() -> None:
    """It answers the same in both cases: what is installed tells."""
    story = with_a_child()
    story.service("UninstallMultipleProtocolInterfaces", BUS, REFUSED)
    story.service("UninstallMultipleProtocolInterfaces", BUS, REFUSED, 50, ("unknown", 1))
    assert rules(story) == []
    story.service("UninstallMultipleProtocolInterfaces", BUS, REFUSED, CHILD, (guids.XENBUS_PROTOCOL, 2), ("other", 3))
    assert rules(story) == ["cleanup-fails"]


def test_uninstalling_from_a_handle_that_is_gone_is_refused_for_its_arguments() -> None:
    """Everything on it has been uninstalled before."""
    story = Story()
    story.service("InstallMultipleProtocolInterfaces")
    story.service("UninstallMultipleProtocolInterfaces")
    story.service("UninstallMultipleProtocolInterfaces", BUS, REFUSED)
    assert rules(story) == ["cleanup-fails"]


def gone() -> Story:
    """A handle has been made and is gone."""
    story = Story()
    story.service("InstallMultipleProtocolInterfaces")
    story.service("UninstallMultipleProtocolInterfaces")
    return story


@pytest.mark.parametrize(
    ("service", "arguments"),
    [
        ("InstallProtocolInterface", (CHILD, "guid", 0, POOL)),
        ("InstallMultipleProtocolInterfaces", (CHILD, ("guid", POOL))),
        ("OpenProtocol", (CHILD, "guid", BINDING, CHILD, BY_DRIVER)),
    ],
)
def test_a_handle_that_is_gone_is_not_used_to_keep_something(service: str, arguments: tuple[object, ...]) -> None:
    """It is told since when the handle is gone."""
    story = gone()
    story.service(service, BLOCK, REFUSED, *arguments)
    (finding,) = check(story.reading)
    assert finding.signature == f"protocol-usage/closed-interface/XenPvBlkDxe/{service}"
    assert (finding.step, finding.seen) == (
        2,
        f"{service} by XenPvBlkDxe at TPL_APPLICATION; it answered EFI_INVALID_PARAMETER. "
        "The handle had lost its last protocol in step 1.",
    )


def test_asking_about_a_handle_that_is_gone_is_harmless() -> None:
    """Who walks through all handles may meet one; the environment and other handles are no matter either."""
    story = gone()
    story.service("OpenProtocol", BUS, REFUSED, CHILD, "guid", BINDING, CHILD, GET_PROTOCOL)
    story.service("HandleProtocol", BUS, REFUSED, CHILD, "guid")
    story.service("DisconnectController", BUS, REFUSED, CHILD, 0, 0)
    story.service("OpenProtocol", "third-party", REFUSED, CHILD, "guid", BINDING, CHILD, BY_DRIVER)
    story.service("InstallProtocolInterface", BUS, EfiStatus.SUCCESS, CONTROLLER, "guid", 0, POOL)
    assert rules(story) == []


@pytest.mark.parametrize(("entry", "told"), [("Supported", False), ("Start", False), ("Stop", True)])
def test_who_is_asked_about_a_handle_that_is_gone_only_finds_out(entry: str, told: bool) -> None:
    """The caller of Supported() or Start() goes on with it, not the driver; another handle is the driver's own affair."""
    story = gone()
    open_it = (CHILD, "guid", BINDING, CHILD, BY_DRIVER)
    with story.entry(entry, BUS, DENIED, CHILD, ()):
        story.service("OpenProtocol", BUS, REFUSED, *open_it)
    assert rules(story) == (["closed-interface"] if told else [])
    with story.entry("Start", BUS, DENIED):
        story.service("OpenProtocol", BUS, REFUSED, *open_it)
    assert "closed-interface" in rules(story)
