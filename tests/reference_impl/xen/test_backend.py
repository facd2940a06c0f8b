"""Backends: the way through the xenbus states, delays, requests, and devices that come and go."""

from __future__ import annotations

import pytest

from reference_impl.scenario import DEVICE_KINDS
from reference_impl.trace import Kind
from reference_impl.xen.backend import (
    DEVICE_TYPES,
    REACTIONS,
    SECTORS,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_UNKNOWN_OPERATION,
    XenbusState,
)
from tests.reference_impl.xen.guest import PAGE_GFN, Guest

S = XenbusState


def connected(kind: str, delay: int = 0) -> tuple[Guest, int]:
    """A guest whose only device is connected, and the device's port."""
    guest = Guest(kind)
    guest.place_table()
    port = guest.connect(guest.platform.devices[0])
    guest.platform.set_delay(0, delay)
    return guest, port


def states(guest: Guest) -> list[tuple[str, int, int]]:
    """The moves of both ends: who, from, to."""
    return [(r.agent, *r.arguments) for r in guest.records(Kind.XENBUS_STATE)]


def test_every_kind_of_a_scenario_has_a_backend() -> None:
    """Block, network and console, and no more."""
    assert tuple(DEVICE_TYPES) == DEVICE_KINDS


def test_the_table_leads_from_init_wait_round_to_init_wait() -> None:
    """Connected, Closing, Closed, InitWait can follow each other; nothing else is ever entered."""
    assert {own for own, _ in REACTIONS} == set(REACTIONS.values()) == {S.INIT_WAIT, S.CONNECTED, S.CLOSING, S.CLOSED}
    assert all(own != new for (own, _), new in REACTIONS.items())


def test_nodes_are_there_from_the_start() -> None:
    """Both ends' folders, states and the kind's own nodes."""
    guest = Guest("block", "network", "console", "block")
    paths = [(device.path, device.backend_path) for device in guest.platform.devices]
    assert paths == [
        ("device/vbd/0", "/local/domain/0/backend/vbd/1/0"),
        ("device/vif/0", "/local/domain/0/backend/vif/1/0"),
        ("device/console/0", "/local/domain/0/backend/console/1/0"),
        ("device/vbd/1", "/local/domain/0/backend/vbd/1/1"),
    ]
    for path, back in paths:
        assert guest.read(f"{path}/state") == b"1"
        assert guest.read(f"{path}/backend") == back.encode()
        assert guest.read(f"{path}/backend-id") == b"0"
        assert guest.read(f"{back}/state") == b"2"
        assert guest.read(f"{back}/frontend") == f"/local/domain/1/{path}".encode()
    for name in ("sectors", "sector-size", "info", "feature-barrier", "feature-flush-cache"):
        assert str(guest.read(f"{paths[0][1]}/{name}"), "ascii").isdigit()
    assert guest.read("device/vbd/0/device-type") == b"disk"
    assert guest.read("device/vif/0/mac") == guest.read(f"{paths[1][1]}/mac")
    assert guest.read(f"{paths[1][1]}/feature-rx-copy") == b"1"
    assert guest.read(f"{paths[2][1]}/protocol") == b"vt100"


@pytest.mark.parametrize("kind", DEVICE_KINDS)
@pytest.mark.parametrize("state", [S.INITIALISED, S.CONNECTED])
def test_a_device_connects_serves_and_closes(kind: str, state: XenbusState) -> None:
    """The whole way, for each kind: connected, one request, and back to the beginning with nothing held."""
    guest = Guest(kind)
    guest.place_table()
    device = guest.platform.devices[0]
    port = guest.connect(device, state)
    assert guest.read(f"{device.backend_path}/state") == b"4"
    assert [m.frame for m in guest.platform.grant_table.mapped.values()] == [
        PAGE_GFN + at for at in range(len(device.ring_nodes))
    ]
    assert guest.request(device, port) == (77, STATUS_OK)
    assert guest.hypercalls.pending(port)
    guest.close(device, port)
    assert not guest.platform.grant_table.mapped
    assert len(guest.platform.event_channels.bound()) == 1
    assert states(guest) == [
        ("frontend", S.INITIALISING, state),
        ("backend", S.INIT_WAIT, S.CONNECTED),
        ("frontend", state, S.CLOSING),
        ("backend", S.CONNECTED, S.CLOSING),
        ("frontend", S.CLOSING, S.CLOSED),
        ("backend", S.CLOSING, S.CLOSED),
        ("frontend", S.CLOSED, S.INITIALISING),
        ("backend", S.CLOSED, S.INIT_WAIT),
    ]
    port = guest.connect(device, state)
    assert guest.request(device, port) == (77, STATUS_OK)


def test_a_reaction_without_delay_is_in_the_step_of_its_cause() -> None:
    """The watch event about the backend's state has come when the answer to the write is there."""
    guest = Guest("block")
    device = guest.platform.devices[0]
    guest.watch(f"{device.backend_path}/state", "t")
    guest.events.clear()
    guest.write("device/vbd/0/state", 5)
    assert guest.events == [f"{device.backend_path}/state\0t\0".encode()]
    assert not guest.platform.step()


@pytest.mark.parametrize("delay", [1, 2, 21])
def test_a_delay_is_counted_in_steps(delay: int) -> None:
    """The reaction comes in the step that the delay says; until then `step` answers that something is due."""
    guest = Guest("block")
    device = guest.platform.devices[0]
    guest.platform.set_delay(0, delay)
    guest.write("device/vbd/0/state", 5)
    for _ in range(delay - 1):
        assert guest.platform.step()
        assert device.state == S.INIT_WAIT
    assert not guest.platform.step()
    assert device.state == S.CLOSING


def test_requests_of_the_store_are_steps() -> None:
    """A guest that polls the state sees it move."""
    guest = Guest("block")
    back = guest.platform.devices[0].backend_path
    guest.platform.set_delay(0, 3)
    guest.write("device/vbd/0/state", 5)
    assert [guest.read(f"{back}/state") for _ in range(4)] == [b"2", b"2", b"2", b"5"]


def test_a_slow_backend_sees_only_where_the_front_end_is_now() -> None:
    """Closing and Closed within the delay are one change; a change taken back is none."""
    guest, _ = connected("block", delay=5)
    guest.write("device/vbd/0/state", 5)
    guest.write("device/vbd/0/state", 6)
    while guest.platform.step():
        pass
    guest.write("device/vbd/0/state", 1)
    guest.write("device/vbd/0/state", 5)
    while guest.platform.step():
        pass
    assert [move for move in states(guest) if move[0] == "backend"][1:] == [("backend", S.CONNECTED, S.CLOSED)]


@pytest.mark.parametrize("delay", [1, 3])
def test_a_slow_backend_serves_late(delay: int) -> None:
    """The response is there after that many steps, and the event with it."""
    guest, port = connected("network", delay)
    device = guest.platform.devices[0]
    assert guest.request(device, port) == (0, 0)
    for _ in range(delay):
        assert not guest.hypercalls.pending(port)
        guest.platform.step()
    assert guest.hypercalls.pending(port)
    assert bytes(guest.platform.memory_page(PAGE_GFN + 1)[16:20]) == b"\x4d\0\0\0"


def test_a_request_that_is_not_served_yet_is_dropped_by_closing() -> None:
    """After the backend has let go of the page it writes nothing to it."""
    guest, port = connected("block", 9)
    device = guest.platform.devices[0]
    guest.request(device, port)
    guest.platform.set_delay(0, 0)
    guest.write("device/vbd/0/state", 6)
    for _ in range(20):
        guest.platform.step()
    assert bytes(guest.platform.memory_page(PAGE_GFN)[16:24]) == bytes(8)


def test_bad_requests_have_their_status() -> None:
    """A sector behind the end is an error, an unknown operation is said to be that; flush has no sector."""
    guest, port = connected("block")
    device = guest.platform.devices[0]
    assert guest.request(device, port, 1, 0, SECTORS) == (1, STATUS_ERROR)
    assert guest.request(device, port, 2, 9) == (2, STATUS_UNKNOWN_OPERATION)
    assert guest.request(device, port, 3, 3) == (3, STATUS_OK)
    guest.write("device/vbd/0/state", 5)
    assert guest.request(device, port, 4) == (3, STATUS_OK), "no longer served"


@pytest.mark.parametrize("fault", ["no grant", "no node", "no number", "no port", "table removed", "second ring"])
def test_a_front_end_that_cannot_be_mapped_is_answered_with_closing(fault: str) -> None:
    """Nothing stays mapped or bound; the front end can close and begin again."""
    guest = Guest("network")
    guest.place_table()
    device = guest.platform.devices[0]
    port = guest.hypercalls.event_channel_alloc_unbound(0)
    table = guest.platform.grant_table
    if fault != "no grant":
        table.grant("net", 8, 0, PAGE_GFN)
    if fault not in ("no grant", "second ring"):
        table.grant("net", 9, 0, PAGE_GFN + 1)
    if fault == "table removed":
        guest.remove_table()
    if fault != "no node":
        guest.write(f"{device.path}/tx-ring-ref", 8)
    guest.write(f"{device.path}/rx-ring-ref", "nine" if fault == "no number" else 9)
    guest.write(f"{device.path}/event-channel", 200 if fault == "no port" else port)
    guest.write(f"{device.path}/state", 4)
    assert device.state == S.CLOSING
    assert not table.mapped
    assert len(guest.platform.event_channels.bound()) == 1
    for state in (5, 6, 1):
        guest.write(f"{device.path}/state", state)
    assert device.state == S.INIT_WAIT


def test_a_front_end_that_vanishes_is_let_go() -> None:
    """Without its `state` node, or with nonsense in it, the front end is in no state, and the backend closes."""
    for how in ("remove", "nonsense"):
        guest, _ = connected("console")
        if how == "remove":
            guest.remove("device/console/0/state")
        else:
            guest.write("device/console/0/state", "gone")
        assert guest.platform.devices[0].state == S.CLOSED
        assert not guest.platform.grant_table.mapped
        assert states(guest)[-2:] == [("frontend", S.CONNECTED, S.UNKNOWN), ("backend", S.CONNECTED, S.CLOSED)]


def test_a_backend_does_not_follow_a_front_end_that_skips_closing() -> None:
    """Initialising straight from Connected is no way of the table: nothing happens, and the grants stay."""
    guest, _ = connected("block")
    guest.write("device/vbd/0/state", 1)
    assert guest.platform.devices[0].state == S.CONNECTED
    assert guest.platform.grant_table.mapped


def test_a_device_appears_with_its_nodes_and_its_number() -> None:
    """Who watches `device` hears of it; it works like any other; numbers of removed devices are not used again."""
    guest = Guest("block")
    guest.watch("device", "t")
    assert guest.platform.remove_device(0)
    guest.events.clear()
    assert guest.platform.add_device("block") == "device/vbd/1"
    assert guest.platform.add_device("network") == "device/vif/0"
    guest.read("domid")
    assert b"device/vbd/1\0t\0" in guest.events
    guest.place_table()
    port = guest.connect(guest.platform.devices[1])
    assert guest.request(guest.platform.devices[1], port) == (77, STATUS_OK)


def test_a_device_that_nobody_uses_goes_at_once() -> None:
    """Never connected, or closed again: both folders are removed when the backend is asked."""
    guest = Guest("block", "network")
    guest.place_table()
    guest.watch("device/vbd/0", "t")
    guest.events.clear()
    assert guest.platform.remove_device(0)
    assert guest.read("device/vbd/0") == "ENOENT"
    assert guest.read("/local/domain/0/backend/vbd/1/0") == "ENOENT"
    assert guest.write("device/vbd/0/state", 1) == "EACCES"
    assert guest.events == [b"device/vbd/0\0t\0"]
    net = guest.platform.devices[1]
    guest.close(net, guest.connect(net))
    assert guest.platform.remove_device(1)
    assert net.removed


def test_what_is_not_there_cannot_be_removed_or_slowed_down() -> None:
    """False for an unknown index and for a device that is gone."""
    guest = Guest("block")
    platform = guest.platform
    assert platform.remove_device(0)
    for index in (0, 1, -1):
        assert not platform.remove_device(index)
        assert not platform.set_delay(index, 1)


@pytest.mark.parametrize("delay", [0, 4])
def test_a_connected_device_goes_when_its_front_end_has_closed(delay: int) -> None:
    """Asked to close, the backend goes to Closing and says `online` 0; after Closed both folders are removed."""
    guest, _ = connected("block", delay)
    device = guest.platform.devices[0]
    assert guest.platform.remove_device(0)
    assert guest.platform.remove_device(0), "asking twice changes nothing"
    assert guest.read(f"{device.backend_path}/online") == b"0"
    assert guest.read(f"{device.backend_path}/state") == b"5"
    guest.write("device/vbd/0/state", 5)
    guest.write("device/vbd/0/state", 6)
    while guest.platform.step():
        pass
    assert device.removed
    assert not guest.platform.grant_table.mapped
    assert guest.write("device/vbd/0/state", 1) == "EACCES"
    assert states(guest)[-3:] == [
        ("backend", S.CLOSING, S.CLOSED),
        ("backend", S.CLOSED, S.UNKNOWN),
        ("frontend", S.CLOSED, S.UNKNOWN),
    ]


def test_a_backend_in_closed_with_its_front_end_elsewhere_goes_too() -> None:
    """A front end in Closed whose close is not yet seen, or that never came back, does not keep the device."""
    guest, _ = connected("block", 3)
    guest.write("device/vbd/0/state", 6)
    assert guest.platform.remove_device(0)
    while guest.platform.step():
        pass
    assert guest.platform.devices[0].removed
    guest, _ = connected("block")
    guest.write("device/vbd/0/state", 6)
    guest.write("device/vbd/0/state", 4)
    assert guest.platform.remove_device(0)
    assert not guest.platform.step()
    assert guest.platform.devices[0].removed


def test_a_closing_device_is_known_by_any_path_of_it() -> None:
    """Either end in Closing or Closed counts, for paths of both folders, relative and absolute; "" asks for any."""
    guest = Guest("block", "network")
    platform = guest.platform
    paths = (
        "device/vbd/0",
        "device/vbd/0/state",
        "/local/domain/1/device/vbd/0/ring-ref",
        "/local/domain/0/backend/vbd/1/0",
        "/local/domain/0/backend/vbd/1/0/state",
        "",
    )
    assert not any(platform.device_is_closing(path) for path in paths)
    guest.write("device/vbd/0/state", 5)
    assert all(platform.device_is_closing(path) for path in paths)
    for path in ("device/vif/0/state", "device", "/local/domain/0/backend/vbd", "/local/domain/1/name", "data"):
        assert not platform.device_is_closing(path)


def test_a_silent_backend_answers_neither_requests_nor_states() -> None:
    """It holds what it had mapped, and no number of steps brings it on; nor can it be asked to close."""
    guest, port = connected("block")
    device = guest.platform.devices[0]
    device.fall_silent()
    before = states(guest)
    guest.hypercalls.event_channel_send(port)
    guest.write(f"{device.path}/state", b"5")
    assert not any(guest.platform.step() for _ in range(100))
    assert [move for move in states(guest)[len(before) :] if move[0] == "backend"] == []
    assert guest.platform.grant_table.mapped
    assert guest.platform.remove_device(0) is False


def test_what_was_due_when_a_backend_fell_silent_never_comes() -> None:
    """A reaction on its way is lost as well."""
    guest, _ = connected("block", delay=3)
    device = guest.platform.devices[0]
    guest.write(f"{device.path}/state", b"5")
    device.fall_silent()
    assert not any(guest.platform.step() for _ in range(10))
    assert device.state == S.CONNECTED


def test_a_backend_that_dies_holds_nothing_any_more() -> None:
    """The hypervisor takes pages and port back, and the nodes still say Connected."""
    guest, _ = connected("network")
    device = guest.platform.devices[0]
    device.die()
    assert not guest.platform.grant_table.mapped
    assert guest.read(f"{device.backend_path}/state") == b"4"
    assert device.state == S.CONNECTED
