"""What counts as use of a memory service, whose it is, and how it is told."""

from __future__ import annotations

import pytest
from hypothesis import given

from oracles.memory_services import MEMORY_SERVICES, check
from oracles.reading import Reading
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, Story, traces


@pytest.mark.parametrize("service", sorted(MEMORY_SERVICES))
def test_each_memory_service_counts(service: str) -> None:
    """AllocatePool, FreePool, AllocatePages, FreePages and GetMemoryMap are the memory services (UEFI 2.10 §7.2)."""
    story = Story()
    with story.exit(), story.notification():
        story.service(service)
    assert story.signatures() == [f"memory-services/direct-call/XenBusDxe/{service}"]


@pytest.mark.parametrize("status", [EfiStatus.OUT_OF_RESOURCES, None])
def test_a_direct_call_that_fails_counts(status: EfiStatus | None) -> None:
    """A call that is refused, or never returns, was made all the same."""
    story = Story()
    with story.exit(), story.notification():
        story.service("AllocatePages", BUS, status)
    assert story.signatures() == ["memory-services/direct-call/XenBusDxe/AllocatePages"]


def test_a_service_that_was_refused_memory_counts_as_allocating() -> None:
    """CreateEvent that answers EFI_OUT_OF_RESOURCES has asked for memory; CloseEvent with any answer has not."""
    story = Story()
    with story.exit(), story.notification():
        story.service("CreateEvent", BUS, EfiStatus.OUT_OF_RESOURCES)
        story.service("CloseEvent", BUS, EfiStatus.INVALID_PARAMETER)
    (finding,) = check(story.reading)
    assert finding.signature == "memory-services/allocates-inside/XenBusDxe/CreateEvent"
    assert finding.seen == (
        "CreateEvent by XenBusDxe at TPL_CALLBACK, inside the notification of XenBusDxe; "
        "it answered EFI_OUT_OF_RESOURCES."
    )


def test_what_the_firmware_calls_is_its_own_affair() -> None:
    """The notification after it is judged all the same."""
    story = Story()
    with story.exit():
        story.service("AllocatePool", "firmware")
        with story.notification():
            story.service("FreePool")
    assert story.signatures() == ["memory-services/direct-call/XenBusDxe/FreePool"]


def test_calls_inside_a_service_belong_to_the_driver_that_makes_them() -> None:
    """The bus disconnects, the block driver's Stop closes a protocol and frees: each answers for its own calls."""
    story = Story()
    story.entry("Start", BLOCK)
    with story.exit(), story.notification(), story.service("DisconnectController"):
        story.core("allocate", "DisconnectController")
        with story.entry("Stop", BLOCK):
            with story.service("CloseProtocol", BLOCK):
                story.core("free", "CloseProtocol", BLOCK)
            story.service("FreePool", BLOCK)
        story.core("free", "DisconnectController")
    assert story.signatures() == [
        "memory-services/allocates-inside/XenBusDxe/DisconnectController",
        "start-stop/stop-during-exit/XenBusDxe/Stop",
        "memory-services/frees-inside/XenPvBlkDxe/CloseProtocol",
        "memory-services/direct-call/XenPvBlkDxe/FreePool",
    ]


def test_the_finding_says_in_what_the_call_was_nested() -> None:
    """Service, caller, TPL by name, everything around it from the inside out, and the answer; nothing of the loader."""
    story = Story()
    with story.exit(), story.notification(BUS, Tpl.NOTIFY), story.service("DisconnectController"):
        story.entry("Supported", BLOCK)
        with story.entry("Stop", BLOCK), story.add(Kind.HYPERCALL, BLOCK, "EVTCHNOP_close"):
            story.service("AllocatePool", BLOCK)
    (finding,) = check(story.reading)
    assert finding.seen == (
        "AllocatePool by XenPvBlkDxe at TPL_NOTIFY, inside Stop of XenPvBlkDxe, "
        "inside DisconnectController by XenBusDxe, inside the notification of XenBusDxe; it answered EFI_SUCCESS."
    )
    assert finding.source == "UEFI 2.10 §7.1.1"
    assert not finding.note


def test_what_the_core_does_is_told_as_such() -> None:
    """An allocation inside a service has its size, and a TPL without a name its number."""
    story = Story()
    with story.exit(), story.notification(BUS, 12):
        with story.service("OpenProtocol"):
            story.core("allocate", "OpenProtocol")
        with story.service("CloseEvent"):
            story.core("free", "CloseEvent")
    allocates, frees = check(story.reading)
    assert allocates.seen == (
        "The core allocated 48 bytes at TPL 12, inside OpenProtocol by XenBusDxe, inside the notification of XenBusDxe."
    )
    assert frees.seen == (
        "The core freed memory at TPL 12, inside CloseEvent by XenBusDxe, inside the notification of XenBusDxe."
    )
    assert (allocates.note, frees.note) == (False, True)


def test_a_service_that_also_frees_is_no_note() -> None:
    """A call that allocates and frees is one finding, in whichever order."""
    story = Story()
    with story.exit(), story.notification(), story.service("UninstallProtocolInterface"):
        story.core("free", "UninstallProtocolInterface")
        story.core("allocate", "UninstallProtocolInterface")
    assert [finding.rule for finding in check(story.reading)] == ["allocates-inside"]


def test_each_call_of_a_service_is_looked_at_by_itself() -> None:
    """The first call frees and allocates, the second only frees: a finding and a note."""
    story = Story()
    with story.exit(), story.notification():
        for deeds in (("free", "allocate"), ("free",)):
            with story.service("UninstallProtocolInterface"):
                for deed in deeds:
                    story.core(deed, "UninstallProtocolInterface")
    findings = sorted(check(story.reading), key=lambda finding: finding.step)
    assert [(finding.rule, finding.step) for finding in findings] == [("allocates-inside", 5), ("frees-inside", 7)]


@pytest.mark.parametrize("agent", ["environment", "firmware", "os", "os-loader", "caller", "other"])
def test_the_environment_is_never_blamed(agent: str) -> None:
    """What the loader or the firmware allocates while notifications run is not a driver's doing."""
    story = Story()
    with story.exit():
        story.service("AllocatePool", agent)
        story.service("CreateEvent", agent, EfiStatus.OUT_OF_RESOURCES)
        with story.service("ConnectController", agent):
            story.core("allocate", "ConnectController", agent)
            story.core("free", "ConnectController", agent)
    assert story.signatures() == []


def test_other_records_of_the_phase_are_passed_over() -> None:
    """Hypercalls and resets are no memory services; what the drivers do after the phase is another oracle's."""
    story = Story()
    with story.exit(), story.notification():
        story.add(Kind.HYPERCALL, BUS, "EVTCHNOP_close", (5,), 0)
    story.service("AllocatePool")
    assert check(story.reading) == []


@given(traces(last_phase=Phase.RETRY))
def test_no_finding_without_the_exit_group(trace: Trace) -> None:
    """Before the EXIT group nothing breaks these rules: not in the BEFORE group, not after a failed exit."""
    assert check(Reading(trace)) == []


@given(traces())
def test_direct_calls_are_exactly_the_drivers_calls_of_the_phase(trace: Trace) -> None:
    """Agents and services of the findings are those that one sees by reading the trace line by line."""
    seen = {
        (agent, name)
        for kind, agent, _, _, phase, name, _, _, _ in trace.records
        if kind == Kind.SERVICE and phase == Phase.EXIT and agent in (BUS, BLOCK) and name in MEMORY_SERVICES
    }
    found = [(finding.agent, finding.subject) for finding in check(Reading(trace)) if finding.rule == "direct-call"]
    assert set(found) == seen
    assert len(found) == len(seen)


def test_what_a_third_party_causes_in_its_notification_is_not_told() -> None:
    """A driver's Stop in it did not choose when to run; what comes before, behind, around and further inside did."""
    story = Story()
    services = iter(("AllocatePool", "FreePool", "AllocatePages", "FreePages", "GetMemoryMap"))
    story.entry("Start", BLOCK)
    with story.exit():
        with story.notification():
            story.service(next(services))
            with story.service("RestoreTPL"), story.entry("Notify", "third-party"):
                with story.entry("Stop", BLOCK):
                    story.service("AllocatePool", BLOCK)
                    story.service("CreateEvent", BLOCK, EfiStatus.OUT_OF_RESOURCES)
                with story.entry("Notify", BLOCK):
                    story.service(next(services), BLOCK)
                story.service("AllocatePages", BLOCK)
            story.service(next(services))
        with story.notification("third-party"):
            story.service("FreePool")
        story.service(next(services))
        story.add(Kind.HYPERCALL, BUS, "Notify")
        story.service(next(services))
    assert [(finding.agent, finding.subject) for finding in check(story.reading)] == [
        *(
            (BUS, "AllocatePool"),
            (BLOCK, "FreePool"),
            (BUS, "AllocatePages"),
            (BUS, "FreePages"),
            (BUS, "GetMemoryMap"),
        ),
    ]


def test_a_core_that_notifies_in_each_attempt_is_judged_in_each() -> None:
    """Between the attempts memory services are free."""
    story = Story()
    for service in ("AllocatePool", "FreePool"):
        story.trace.phase = int(Phase.EXIT)
        with story.notification():
            story.service(service)
        for phase in (Phase.CHECK, Phase.FAILED, Phase.RETRY):
            story.trace.phase = int(phase)
            story.service("AllocatePages")
    assert [finding.subject for finding in check(story.reading)] == ["AllocatePool", "FreePool"]
