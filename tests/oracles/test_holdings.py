"""What is entered in the book, who has to give it back, and when."""

from __future__ import annotations

import pytest

from oracles.holdings import book_of
from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BY_DRIVER, EXCLUSIVE, GET_PROTOCOL
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import (
    BINDING,
    BLOCK,
    BUS,
    CHILD,
    CONTROLLER,
    DISK,
    EVENT,
    FOR_CHILD,
    PAGES,
    POOL,
    PORT,
    SECOND_CHILD,
    Story,
)

GRANT = (Kind.GRANT, BUS, "grant", (8, 0x1000, 0), "OK")


def kept(story: Story) -> list[tuple[str, object, str, str]]:
    """What was not given back: resource, key, whose, and what was over."""
    return [
        (each.holding.resource, each.holding.key, each.agent, each.entry.name) for each in book_of(story.reading).kept
    ]


TAKEN = {
    "AllocatePool": ("pool", POOL, lambda story: story.service("FreePool")),
    "LocateHandleBuffer": ("pool", POOL, lambda story: story.service("FreePool")),
    "OpenProtocolInformation": ("pool", POOL, lambda story: story.service("FreePool")),
    "ProtocolsPerHandle": ("pool", POOL, lambda story: story.service("FreePool")),
    "AllocatePages": ("pages", PAGES, lambda story: story.service("FreePages")),
    "CreateEvent": ("event", EVENT, lambda story: story.service("CloseEvent")),
    "CreateEventEx": ("event", EVENT, lambda story: story.service("CloseEvent")),
    "OpenProtocol": (
        "open",
        (CONTROLLER, guids.XENIO_PROTOCOL, BINDING, CONTROLLER),
        lambda story: story.service("CloseProtocol"),
    ),
    "InstallProtocolInterface": (
        "interface",
        (CHILD, guids.BLOCK_IO_PROTOCOL),
        lambda story: story.service("UninstallProtocolInterface"),
    ),
}


@pytest.mark.parametrize("service", TAKEN)
def test_what_a_failed_start_takes_by_a_service_is_due(service: str) -> None:
    """Unless it is given back; and a call that was refused has taken nothing."""
    resource, key, give = TAKEN[service]
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service(service)
    assert kept(story) == [(resource, key, BUS, "Start")]
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service(service)
        give(story)
    assert kept(story) == []
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service(service, BUS, EfiStatus.OUT_OF_RESOURCES)
    assert kept(story) == []


LENT = {
    "event-channel": (
        PORT,
        lambda story, status: story.hypercall("EVTCHNOP_alloc_unbound", BUS, status),
        lambda story: story.hypercall("EVTCHNOP_close", BUS, -22),
    ),
    "physmap": (
        PAGES >> 12,
        lambda story, status: story.hypercall("XENMEM_add_to_physmap", BUS, status),
        lambda story: story.hypercall("XENMEM_remove_from_physmap", BUS, -22),
    ),
    "grant": (
        8,
        lambda story, status: story.add(Kind.GRANT, BUS, "grant", (8, 0x1000, 0), "not" if status else "OK"),
        lambda story: story.add(Kind.GRANT, BUS, "end", (8,), "in use"),
    ),
    "watch": (
        ("backend/state", b"token\0"),
        lambda story, status: story.xenstore("WATCH", "EACCES" if status else "OK"),
        lambda story: story.xenstore("UNWATCH", "ENOENT"),
    ),
    "device": (
        DISK,
        lambda story, status: story.frontend(1, 2 if status else 4),
        lambda story: story.xenstore("WRITE", "EACCES"),
    ),
}


@pytest.mark.parametrize("resource", LENT)
def test_what_the_platform_lends_is_due_from_the_driver_whose_code_runs(resource: str) -> None:
    """The bus makes the call, the device's Start is left; an attempt to give back counts, whatever its answer is."""
    key, take, give = LENT[resource]
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        take(story, 0)
    assert kept(story) == [(resource, key, BLOCK, "Start")]
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        take(story, 0)
        give(story)
    assert kept(story) == []
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        take(story, -22)
    assert kept(story) == []


def test_a_stop_gives_back_what_the_start_of_its_controller_took() -> None:
    """Not what the Start of another controller took; that is due at its own Stop."""
    story = Story()
    for number in (0, 1):
        with story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD + number, None):
            story.service("AllocatePool", BLOCK, value=POOL + number)
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, SECOND_CHILD, ())
    assert kept(story) == [("pool", POOL + 1, BLOCK, "Stop")]
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, CHILD, ())
    assert kept(story) == [("pool", POOL + 1, BLOCK, "Stop"), ("pool", POOL, BLOCK, "Stop")]


@pytest.mark.parametrize("status", [EfiStatus.DEVICE_ERROR, None])
def test_a_stop_that_does_not_succeed_leaves_everything_to_the_driver(status: EfiStatus | None) -> None:
    """Nor does a Start that never came back owe anything."""
    story = Story()
    with story.entry("Start"):
        story.service("AllocatePool")
    story.entry("Stop", BUS, status)
    with story.entry("Start", BLOCK, None):
        story.service("AllocatePool", BLOCK)
    assert kept(story) == []


def test_a_stop_of_children_ends_no_managing() -> None:
    """What the bus took for itself is due when it is stopped as a whole."""
    story = Story()
    with story.entry("Start"):
        story.service("AllocatePool")
    story.entry("Stop", BUS, EfiStatus.SUCCESS, CONTROLLER, (CHILD,))
    assert kept(story) == []


def test_what_another_driver_takes_is_due_when_that_one_manages_nothing_more() -> None:
    """The bus allocates in a member function that the device's Start calls: the device's Stop says nothing about it."""
    story = Story()
    story.entry("Supported")
    story.entry("Start")
    with story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD, None):
        story.service("AllocatePool")
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, CHILD, ())
    assert kept(story) == []
    story.entry("Stop")
    assert kept(story) == [("pool", POOL, BUS, "Stop")]


def test_an_image_that_is_no_driver_takes_for_its_caller() -> None:
    """DevicePathDxe allocates a path in the bus's Start."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool", "DevicePathDxe")
    assert kept(story) == [("pool", POOL, BUS, "Start")]


@pytest.mark.parametrize("outside", [True, False])
def test_what_is_taken_elsewhere_is_due_with_the_last_stop(outside: bool) -> None:
    """In a notification, or in a request outside of any entry; not while another controller is managed."""
    story = Story()
    for controller in (CHILD, SECOND_CHILD):
        story.entry("Start", BLOCK, EfiStatus.SUCCESS, controller, None)
    if outside:
        story.service("AllocatePool", BLOCK)
    else:
        with story.notification(BLOCK):
            story.service("AllocatePool", BLOCK)
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, CHILD, ())
    assert kept(story) == []
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, SECOND_CHILD, ())
    assert kept(story) == [("pool", POOL, BLOCK, "Stop")]


def test_code_that_goes_on_may_still_give_back() -> None:
    """Unload asks for all handles and disconnects: the buffer is not due at the Stop inside."""
    story = Story()
    story.entry("Start")
    with story.entry("Unload"):
        story.service("LocateHandleBuffer")
        with story.service("DisconnectController"):
            story.entry("Stop")
        story.service("FreePool")
    assert kept(story) == []


def test_what_a_start_inside_of_the_stop_takes_is_not_due_at_it() -> None:
    """The controller is managed again when the outer Stop returns."""
    story = Story()
    story.entry("Start", BLOCK)
    with story.entry("Stop", BLOCK), story.service("ConnectController", BLOCK), story.entry("Start", BLOCK):
        story.service("AllocatePool", BLOCK)
    assert kept(story) == []
    story.entry("Stop", BLOCK)
    assert kept(story) == [("pool", POOL, BLOCK, "Stop")]


def test_what_the_entry_point_takes_is_due_at_unload() -> None:
    """Memory, events and interfaces, but not opens, which the core closes itself; a Stop leaves them alone."""
    story = Story()
    with story.entry("EntryPoint"):
        for service in ("AllocatePool", "CreateEvent", "InstallProtocolInterface", "OpenProtocol", "AllocatePages"):
            story.service(service)
    story.entry("Start", BUS, EfiStatus.SUCCESS, 30, None)
    story.entry("Stop", BUS, EfiStatus.SUCCESS, 30, ())
    story.entry("Unload", BUS, EfiStatus.ACCESS_DENIED)
    assert kept(story) == []
    story.entry("Unload")
    assert [resource for resource, _, _, _ in kept(story)] == ["pool", "event", "interface", "pages"]


def test_an_entry_point_that_fails_leaves_nothing() -> None:
    """UEFI 2.10 §7.4.3."""
    story = Story()
    with story.entry("EntryPoint", BUS, EfiStatus.UNSUPPORTED):
        story.service("CreateEvent")
    assert kept(story) == [("event", EVENT, BUS, "EntryPoint")]


def test_a_driver_that_is_torn_out_owes_nothing() -> None:
    """The environment unloads it as it is; at another operation it is a fault again."""
    story = Story()
    with story.entry("EntryPoint"):
        story.service("CreateEvent")
    story.operation("tear-out")
    story.entry("Unload")
    assert kept(story) == []
    story.operation("unload")
    story.entry("Unload")
    assert kept(story) == [("event", EVENT, BUS, "Unload")]


def test_the_environment_takes_and_gives_nothing() -> None:
    """Neither what a third party takes in a driver's Start, nor its own entries, nor what it closes."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool", "third-party")
        story.service("CreateEvent")
        story.service("CloseEvent", "third-party")
    with story.entry("Start", "third-party", EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool", "third-party")
    assert kept(story) == [("event", EVENT, BUS, "Start")]


def test_opens_that_need_no_close_are_not_entered() -> None:
    """GET_PROTOCOL and its like; EXCLUSIVE is entered as BY_DRIVER is."""
    story = Story()
    opened = (CONTROLLER, guids.XENIO_PROTOCOL, BINDING, CONTROLLER)
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *opened, GET_PROTOCOL)
    assert kept(story) == []
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *opened, EXCLUSIVE)
    assert kept(story) == [("open", opened, BUS, "Start")]


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ([(PAGES, 3)], []),
        ([(PAGES, 1), (PAGES + 0x1000, 2)], []),
        ([(PAGES + 0x2000, 1), (PAGES, 2)], []),
        ([(PAGES, 2)], [("pages", PAGES, BUS, "Start")]),
        ([(PAGES + 0x3000, 3)], [("pages", PAGES, BUS, "Start")]),
        ([(PAGES - 0x1000, 3)], [("pages", PAGES, BUS, "Start")]),
    ],
)
def test_pages_are_gone_with_the_last_of_them(parts: list[tuple[int, int]], left: list[object]) -> None:
    """In one call or in several; pages beside them are somebody else's."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePages", BUS, EfiStatus.SUCCESS, 0, 4, 3, 0)
        story.service("AllocatePool")
        for start, count in parts:
            story.service("FreePages", BUS, EfiStatus.SUCCESS, start, count)
        story.service("FreePool")
    assert kept(story) == left


def test_several_interfaces_go_in_one_call_or_one_by_one() -> None:
    """Installed together, uninstalled apart; a refusal that was not injected takes nothing away."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("UninstallMultipleProtocolInterfaces", BUS, EfiStatus.INVALID_PARAMETER)
        story.service("UninstallProtocolInterface", BUS, EfiStatus.SUCCESS, CHILD, guids.XENBUS_PROTOCOL, 2)
    assert kept(story) == [("interface", (CHILD, guids.DEVICE_PATH_PROTOCOL), BUS, "Start")]
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("InstallMultipleProtocolInterfaces")
        with story.service("UninstallMultipleProtocolInterfaces", BUS, EfiStatus.INVALID_PARAMETER):
            story.injected("UninstallMultipleProtocolInterfaces")
    assert kept(story) == []


def test_a_reset_ends_what_belongs_to_the_connection() -> None:
    """All watches with the ring, all grants with the grant table."""
    for resource, gone in (("ring", "grant"), ("grant-table", "watch")):
        story = Story()
        with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
            story.xenstore("WATCH")
            story.add(*GRANT)
            story.reset(resource, 1)
        assert [each[0] for each in kept(story)] == [gone]


@pytest.mark.parametrize(
    ("status", "path", "value", "left"),
    [
        ("OK", "device/vbd/0/state", b"5", True),
        ("EACCES", "device/vbd/0/state", b"4", True),
        ("EACCES", "device/vbd/0/state", b"3", True),
        ("EACCES", "device/vbd/0/ring-ref", b"8", True),
        ("EACCES", "device/vbd/1/state", b"6", True),
        ("EACCES", "/local/domain/1/device/vbd/0/state", b"6", False),
        ("EACCES", "device/vbd/0/state", b"", False),
    ],
)
def test_only_a_refused_closing_state_lets_a_front_end_go(status: str, path: str, value: bytes, left: bool) -> None:
    """What is written is seen by the state itself."""
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        story.frontend(1, 3)
        story.frontend(3, 4)
        story.xenstore("WRITE", status, BUS, *((path, value) if value else (path,)))
    assert kept(story) == ([("device", DISK, BLOCK, "Start")] if left else [])


def test_supported_owes_what_it_took_and_nothing_from_before() -> None:
    """Also where it succeeds; what other code took before goes on."""
    story = Story()
    with story.entry("Start"):
        story.service("AllocatePool")
    with story.entry("Supported"):
        story.service("AllocatePool", value=POOL + 64)
    with story.entry("Supported"):
        pass
    assert kept(story) == [("pool", POOL + 64, BUS, "Supported")]


def test_what_is_kept_is_told_in_the_order_in_which_it_was_taken() -> None:
    """One Start that fails, three things; a thing that is taken again counts from then on."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool")
        story.service("AllocatePages")
        story.service("CreateEvent")
        story.service("AllocatePool")
    assert [each[0] for each in kept(story)] == ["pages", "event", "pool"]


def test_the_story_names_call_step_place_and_end() -> None:
    """A front end has no call of its own."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool")
        story.frontend(1, 4)
    pool, device = book_of(story.reading).kept
    assert pool.story(story.reading) == (
        "XenBusDxe called AllocatePool in step 1, inside Start of XenBusDxe; Start() of XenBusDxe answered "
        "EFI_DEVICE_ERROR, and it was not given back."
    )
    assert device.story(story.reading).startswith("The front end of device/vbd/0 came up in step 2, inside Start")
    assert pool.subject("AllocatePool") == "Start-AllocatePool"


def test_the_book_is_made_once() -> None:
    """All oracles read the same."""
    reading = Story().reading
    assert book_of(reading) is book_of(reading)


def test_a_lie_is_a_stop_that_lets_go_of_nothing() -> None:
    """Where one of two opens was closed, the other one was forgotten, and that is another fault."""
    second = (CONTROLLER, guids.DEVICE_PATH_PROTOCOL, BINDING, CONTROLLER)
    for closes in (0, 1):
        story = Story()
        with story.entry("Start"):
            story.service("OpenProtocol")
            story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *second, BY_DRIVER)
            story.service("AllocatePool")
        with story.entry("Stop"):
            for _ in range(closes):
                story.service("CloseProtocol")
        book = book_of(story.reading)
        assert [entry.step for entry in book.lies] == ([] if closes else [4])
        assert [each[0] for each in kept(story)] == (["open", "pool"] if closes else [])


def test_opens_of_others_and_for_others_make_no_lie() -> None:
    """Another driver's open, an open for another controller, one for a child, and one from inside of the Stop."""
    story = Story()
    for controller in (CONTROLLER, 20):
        story.entry("Start", BUS, EfiStatus.SUCCESS, controller, None)
    story.service("OpenProtocol", BLOCK, EfiStatus.SUCCESS, CONTROLLER, "guid", 4, CONTROLLER, BY_DRIVER)
    story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, 20, "guid", BINDING, 20, BY_DRIVER)
    story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD)
    with story.entry("Stop"):
        story.service("OpenProtocol")
    assert book_of(story.reading).lies == []


def test_handles_are_gone_with_their_last_protocol() -> None:
    """Handles that were made in the run; of others the trace does not know what else they have."""
    story = Story()
    story.service("InstallMultipleProtocolInterfaces")
    story.service("InstallProtocolInterface")
    story.service("UninstallMultipleProtocolInterfaces")
    assert book_of(story.reading).gone == {}
    story.service("UninstallProtocolInterface")
    story.service("InstallProtocolInterface", BUS, EfiStatus.SUCCESS, 50, "guid", 0, POOL, value=50)
    story.service("UninstallProtocolInterface", BUS, EfiStatus.SUCCESS, 50, "guid", POOL)
    assert book_of(story.reading).gone == {CHILD: 3}


@pytest.mark.parametrize(("operation", "left"), [("store", ["grant"]), ("peer", ["watch", "device", "grant"])])
def test_what_only_xenstored_can_take_back_is_not_due_where_it_does_not_answer(operation: str, left: list[str]) -> None:
    """A request that gets no answer leaves no record; grants are the hypervisor's."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.xenstore("WATCH")
        story.frontend(1, 4)
        story.add(*GRANT)
    story.operation(operation)
    story.operation("disconnect")
    story.entry("Stop", BLOCK)
    assert [each[0] for each in kept(story)] == left


def test_only_opens_by_driver_make_a_lie() -> None:
    """Where only an EXCLUSIVE open is left, it was forgotten; closing only that one is a lie all the same."""
    exclusive = (CONTROLLER, guids.DEVICE_PATH_PROTOCOL, BINDING, CONTROLLER)
    story = Story()
    with story.entry("Start"):
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *exclusive, EXCLUSIVE)
    story.entry("Stop")
    assert (len(book_of(story.reading).lies), [each[0] for each in kept(story)]) == (0, ["open"])
    story = Story()
    with story.entry("Start"):
        story.service("OpenProtocol")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *exclusive, EXCLUSIVE)
    with story.entry("Stop"):
        story.service("CloseProtocol", BUS, EfiStatus.SUCCESS, *exclusive)
    assert (len(book_of(story.reading).lies), kept(story)) == (1, [])


def test_a_lie_may_come_as_early_as_a_trace_begins() -> None:
    """The open is the first record, the Stop the second."""
    story = Story()
    story.service("OpenProtocol")
    story.entry("Stop")
    assert len(book_of(story.reading).lies) == 1


def test_a_stop_that_has_let_go_once_may_lie_the_next_time() -> None:
    """What was closed before that Stop says nothing about it."""
    story = Story()
    with story.entry("Start"):
        story.service("OpenProtocol")
        story.service("CloseProtocol")
        story.service("OpenProtocol")
    story.entry("Stop")
    assert len(book_of(story.reading).lies) == 1


def test_a_front_end_belongs_to_the_code_that_brought_it_up() -> None:
    """Initialised in Start, Connected in a notification: it is due at the Stop of that controller."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.frontend(1, 3)
    story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD, None)
    with story.notification(BLOCK):
        story.frontend(3, 4)
    story.entry("Stop", BLOCK)
    assert kept(story) == [("device", DISK, BLOCK, "Stop")]


def test_what_has_a_number_like_an_attribute_is_no_open() -> None:
    """Eight pages are no child, sixteen no driver's open, when a handle goes or a Stop comes."""
    story = Story()
    with story.entry("Start"):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("AllocatePages", BUS, EfiStatus.SUCCESS, 0, 4, 8, 0, value=(0, 0, 0, CHILD))
        story.service("UninstallMultipleProtocolInterfaces")
    assert book_of(story.reading).orphans == []


def test_a_driver_that_has_a_child_open_itself_loses_no_record_of_a_child() -> None:
    """It opened the handle that goes for itself, and not as a child of another."""
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD, None):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("OpenProtocol", BLOCK, EfiStatus.SUCCESS, CHILD, guids.XENBUS_PROTOCOL, 8, CHILD, 0x10)
        story.service("UninstallMultipleProtocolInterfaces")
    assert book_of(story.reading).orphans == []


def test_what_is_taken_inside_of_a_start_is_not_always_its_own() -> None:
    """Not what a notification takes that runs in it, nor what the bus takes for itself."""
    story = Story()
    story.entry("Supported")
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        with story.entry("Notify", BLOCK):
            story.service("AllocatePool", BLOCK)
        story.service("CreateEvent")
    assert kept(story) == []
