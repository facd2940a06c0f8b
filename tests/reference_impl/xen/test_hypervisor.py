"""Hypercalls, event channels and the grant table."""

from __future__ import annotations

import struct

import pytest

from reference_impl.trace import Kind
from reference_impl.xen.event_channel import PORTS_MAX
from reference_impl.xen.hypervisor import GRANT_TABLE, SHARED_INFO, STORE_EVTCHN, STORE_GFN, STORE_PFN, HypercallError
from tests.reference_impl.xen.guest import SHARED_INFO_GFN, TABLE_GFN, Guest


class Peer:
    """The other end of a port."""

    path = "peer"

    def __init__(self) -> None:
        self.notified_by: list[str] = []

    def notified(self, agent: str) -> None:
        """Remember who sent."""
        self.notified_by.append(agent)


def refused(errno: int) -> pytest.RaisesExc:
    """Expect a hypercall's refusal."""
    return pytest.raises(HypercallError, match=f"errno {errno}$")


def test_parameters_lead_to_the_store() -> None:
    """STORE_PFN and STORE_EVTCHN name the store's page and port; others are 0, unknown ones EINVAL."""
    guest = Guest()
    calls = guest.hypercalls
    assert guest.platform.memory_page(calls.hvm_get_param(STORE_PFN)) is guest.platform.store_page
    assert guest.platform.event_channels.channels[calls.hvm_get_param(STORE_EVTCHN)].peer is guest.platform.xenstored
    assert calls.hvm_get_param(5) == 0
    for index in (-1, 39):
        with refused(-22):
            calls.hvm_get_param(index)


def test_every_hypercall_is_one_record_with_what_happens_inside_it() -> None:
    """A record has arguments, answer or errno; it stands before what it causes, which is nested deeper."""
    guest = Guest()
    guest.trace.records.clear()
    port = guest.hypercalls.event_channel_alloc_unbound(0)
    guest.hypercalls.add_to_physmap(GRANT_TABLE, 0, TABLE_GFN)
    with refused(-22):
        guest.hypercalls.event_channel_close(99)
    seen = [(r.kind, r.depth, r.name, r.arguments, r.status, r.value) for r in guest.records(*Kind)]
    assert seen == [
        (Kind.HYPERCALL, 0, "EVTCHNOP_alloc_unbound", (0,), 0, port),
        (Kind.HYPERCALL, 0, "XENMEM_add_to_physmap", (GRANT_TABLE, 0, TABLE_GFN), 0, None),
        (Kind.CONNECTION, 1, "grant-table", (1,), None, None),
        (Kind.HYPERCALL, 0, "EVTCHNOP_close", (99,), -22, None),
    ]


def test_an_armed_hypercall_fails_once_and_does_nothing() -> None:
    """The nth call answers the armed errno; the next one works."""
    guest = Guest()
    guest.failures.arm("EVTCHNOP_alloc_unbound", 2, -28)
    first = guest.hypercalls.event_channel_alloc_unbound(0)
    with refused(-28):
        guest.hypercalls.event_channel_alloc_unbound(0)
    assert guest.hypercalls.event_channel_alloc_unbound(0) == first + 1
    assert guest.trace.depth == 0
    assert [r.status for r in guest.records(Kind.INJECTED)] == [-28]


def test_a_port_is_unbound_bound_unbound_and_free_again() -> None:
    """Only the named domain binds, once; events reach the peer; a closed port is the first to be used again."""
    guest = Guest()
    channels = guest.platform.event_channels
    port = guest.hypercalls.event_channel_alloc_unbound(0)
    assert channels.channels[port].owner == "bus"
    peer, other = Peer(), Peer()
    guest.hypercalls.event_channel_send(port)  # lost
    assert not channels.bind(port, peer, domain=2)
    assert not channels.bind(port + 1, peer)
    assert channels.bind(port, peer)
    assert not channels.bind(port, other)
    assert [(channel.port, end) for channel, end in channels.bound()][1:] == [(port, peer)]
    guest.hypercalls.event_channel_send(port)
    channels.unbind(port, other)
    guest.hypercalls.event_channel_send(port)
    channels.unbind(port, peer)
    guest.hypercalls.event_channel_send(port)
    assert peer.notified_by == ["bus", "bus"]
    guest.hypercalls.event_channel_close(port)
    channels.unbind(port, peer)
    with refused(-22):
        guest.hypercalls.event_channel_send(port)
    assert guest.hypercalls.event_channel_alloc_unbound(0) == port


def test_ports_run_out() -> None:
    """ENOSPC where no port is left."""
    guest = Guest()
    for _ in range(PORTS_MAX - 2):
        guest.hypercalls.event_channel_alloc_unbound(0)
    with refused(-28):
        guest.hypercalls.event_channel_alloc_unbound(0)


def test_pending_is_a_bit_of_the_shared_info_page_and_is_seen_once() -> None:
    """The bit is at 2048 in the page; it is invisible while the page is not placed, and gone after a look or a close."""
    guest = Guest()
    channels = guest.platform.event_channels
    port = guest.hypercalls.event_channel_alloc_unbound(0)
    peer = Peer()
    channels.bind(port, peer)
    channels.raise_event(port, peer)
    channels.raise_event(port, Peer())
    channels.raise_event(port + 1, peer)
    assert not guest.hypercalls.pending(port)
    guest.place_table()
    page = guest.platform.memory_page(SHARED_INFO_GFN)
    assert struct.unpack_from("<Q", page, 2048) == (1 << port,)
    assert not guest.hypercalls.pending(port + 1)
    assert guest.hypercalls.pending(port)
    assert not guest.hypercalls.pending(port)
    channels.raise_event(port, peer)
    guest.hypercalls.event_channel_close(port)
    assert page == bytes(4096)


def test_the_physmap_holds_each_page_once() -> None:
    """A page that is placed again leaves its earlier place; what was at the new place goes; unknown pages are EINVAL."""
    guest = Guest()
    calls, platform = guest.hypercalls, guest.platform
    for space, index in ((SHARED_INFO, 1), (GRANT_TABLE, 4), (GRANT_TABLE, -1), (2, 0)):
        with refused(-22):
            calls.add_to_physmap(space, index, 0x1000)
    with refused(-2):
        calls.remove_from_physmap(0x1000)
    calls.add_to_physmap(SHARED_INFO, 0, 0x1000)
    calls.add_to_physmap(SHARED_INFO, 0, 0x1000)
    calls.add_to_physmap(GRANT_TABLE, 1, 0x1001)
    assert platform.memory_page(0x1000) is platform.hypervisor.shared_info
    calls.add_to_physmap(SHARED_INFO, 0, 0x1001)
    assert platform.memory_page(0x1001) is platform.hypervisor.shared_info
    assert platform.memory_page(0x1000) is not platform.hypervisor.shared_info
    assert platform.memory_page(STORE_GFN) is platform.store_page
    assert not platform.grant_table.in_physmap()
    calls.remove_from_physmap(0x1001)
    assert guest.seen(Kind.CONNECTION, Kind.RESET) == [
        ("bus", "grant-table", (1,), None, None),
        ("bus", "grant-table", (1,), None, "removed"),
    ]


def test_moving_the_only_frame_is_no_reset() -> None:
    """A table that goes from one place to another stays in force."""
    guest = Guest()
    guest.hypercalls.add_to_physmap(GRANT_TABLE, 0, 0x10)
    guest.hypercalls.add_to_physmap(GRANT_TABLE, 0, 0x11)
    assert len(guest.records(Kind.CONNECTION, Kind.RESET)) == 1
    assert guest.platform.grant_table.places[0] == 0x11


def test_a_grant_is_an_entry_of_the_placed_table() -> None:
    """Flags, domain and frame stand in the guest's own memory; the peer's use shows in the flags and blocks the end."""
    guest = Guest()
    table = guest.platform.grant_table
    guest.place_table()
    table.grant("disk", 600, 0, 0x1234)
    page = guest.platform.memory_page(TABLE_GFN + 1)
    assert struct.unpack_from("<HHI", page, 88 * 8) == (1, 0, 0x1234)
    assert table.map("peer", 600) == 0x1234
    assert table.map("peer", 600) == 0x1234
    assert struct.unpack_from("<H", page, 88 * 8) == (1 | 8 | 16,)
    assert not table.end_access("disk", 600)
    table.unmap("peer", 600)
    assert not table.end_access("disk", 600)
    table.unmap("peer", 600)
    assert table.end_access("disk", 600)
    assert page[88 * 8 : 89 * 8] == bytes(8)
    assert guest.seen(Kind.GRANT) == [
        ("disk", "grant", (600, 0x1234, 0), "OK", None),
        ("backend", "map", (600, 0x1234, "peer"), "OK", None),
        ("backend", "map", (600, 0x1234, "peer"), "OK", None),
        ("disk", "end", (600,), "in use", None),
        ("backend", "unmap", (600, 0x1234, "peer"), "OK", None),
        ("disk", "end", (600,), "in use", None),
        ("backend", "unmap", (600, 0x1234, "peer"), "OK", None),
        ("disk", "end", (600,), "OK", None),
    ]


def test_the_peer_maps_only_what_was_granted_to_it() -> None:
    """Nothing granted, read-only, another domain, out of the table: not granted."""
    guest = Guest()
    table = guest.platform.grant_table
    guest.place_table()
    table.grant("disk", 8, 0, 1, True)
    table.grant("disk", 9, 3, 1)
    for reference in (8, 9, 10, 2048, -1):
        assert table.map("peer", reference) == -1
    assert {r.status for r in guest.records(Kind.GRANT) if r.name == "map"} == {"not granted"}


def test_without_the_table_in_the_physmap_grants_have_no_effect() -> None:
    """Writing an entry that is nowhere is lost, and nothing can be ended there."""
    guest = Guest()
    table = guest.platform.grant_table
    table.grant("disk", 8, 0, 1)
    assert table.end_access("disk", 8)
    guest.place_table()
    assert table.map("peer", 8) == -1
    assert [r.status for r in guest.records(Kind.GRANT)][:2] == ["table not in the physmap"] * 2


def test_removing_the_last_frame_ends_all_grants_but_no_mapping() -> None:
    """After the reset nothing new can be mapped; what a peer has mapped stays its own until it lets go."""
    guest = Guest()
    table = guest.platform.grant_table
    guest.place_table()
    table.grant("disk", 8, 0, 0x77)
    table.grant("disk", 9, 0, 0x78)
    table.map("peer", 8)
    guest.remove_table()
    guest.place_table()
    assert table.generation == 2
    assert table.map("peer", 9) == -1
    table.grant("net", 8, 0, 0x99)
    assert table.map("peer", 8) == 0x77, "mapped again as it was"
    assert not table.end_access("net", 8)
    table.unmap("peer", 8)
    table.unmap("peer", 8)
    assert table.map("peer", 8) == 0x99
    assert table.mapped[8].owner == "net"
    assert [(r.kind, r.arguments) for r in guest.records(Kind.CONNECTION, Kind.RESET)] == [
        (Kind.CONNECTION, (1,)),
        (Kind.RESET, (1,)),
        (Kind.CONNECTION, (2,)),
    ]
