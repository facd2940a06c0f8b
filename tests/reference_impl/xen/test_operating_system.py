"""The operating system that takes over: what it accepts, and what it finds in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.trace import Kind
from reference_impl.xen.backend import Backend
from reference_impl.xen.operating_system import take_over
from reference_impl.xen.wire import MessageType as M
from reference_impl.xen.wire import pack
from reference_impl.xen.xenstored import _SERVED, Xenstored
from tests.reference_impl.xen.guest import Guest

KINDS = ("block", "network", "console")


def found(guest: Guest) -> list[tuple[Any, ...]]:
    """Take over; what was in the way: name, arguments, reason, agent responsible."""
    before = len(guest.trace.records)
    take_over(guest.platform)
    records = guest.trace.records[before:]
    assert {(record[0], record[1]) for record in records} == {(Kind.TAKE_OVER, "os")}
    names = [record[5] for record in records]
    assert list(dict.fromkeys(names)) == [
        "store",
        "grant-table",
        "event-channel",
        *(device.path for device in guest.platform.devices),
    ]
    return [record[5:] for record in records if record[7:] != ("OK", "")]


def firmware(*kinds: str, reconnection: bool = True, delay: int = 0) -> tuple[Guest, list[int]]:
    """A firmware with all its devices connected; the ports of the devices."""
    guest = Guest(*kinds, reconnection=reconnection)
    guest.place_table()
    guest.watch("device", "bus")
    devices = guest.platform.devices
    ports = [guest.connect(device, first_reference=8 + 2 * at) for at, device in enumerate(devices)]
    for at in range(len(devices)):
        guest.platform.set_delay(at, delay)
    return guest, ports


def reset(guest: Guest) -> None:
    """Reset the connection as its features allow."""
    if guest.platform.reconnection:
        guest.reconnect()
    else:
        guest.platform.ring.clear(guest.agent)
    guest.remove_table()


def close_all(guest: Guest, ports: list[int]) -> None:
    """Close every device."""
    for at, device in enumerate(guest.platform.devices):
        guest.close(device, ports[at], first_reference=8 + 2 * at)


@pytest.mark.parametrize("reconnection", [True, False])
@pytest.mark.parametrize("delay", [0, 1, 21])
def test_an_unused_and_a_well_left_machine_are_taken_over(reconnection: bool, delay: int) -> None:
    """Nothing is in the way, with slow backends too; a watch left behind is no fault of the older way."""
    guest = Guest(*KINDS, "block", reconnection=reconnection)
    guest.platform.set_delay(1, delay)
    assert found(guest) == []
    guest, ports = firmware(*KINDS, "block", reconnection=reconnection, delay=delay)
    close_all(guest, ports)
    reset(guest)
    assert found(guest) == []


def test_the_devices_work_for_the_operating_system_afterwards() -> None:
    """Every backend is connected to a page of the operating system."""
    guest = Guest(*KINDS)
    assert found(guest) == []
    assert [device.state for device in guest.platform.devices] == [4, 4, 4]
    assert {mapping.owner for mapping in guest.platform.grant_table.mapped.values()} == {"os"}


def test_a_firmware_that_does_nothing_is_in_the_way_everywhere() -> None:
    """Ring, watch, grants, ports, devices: each with who is responsible."""
    guest, ports = firmware("block", "network")
    expected = [
        ("store", (1,), "the ring was not reset", "bus"),
        ("store", ("/local/domain/1/device",), "a watch is left", "bus"),
        ("grant-table", (1,), "the firmware's grant table is still in force", "bus"),
        *(
            ("grant-table", (reference, path), "a backend still has the firmware's page mapped", "bus")
            for reference, path in ((8, "device/vbd/0"), (10, "device/vif/0"), (11, "device/vif/0"))
        ),
        *(
            ("event-channel", (port, path), "a backend is still bound to the firmware's event channel", "bus")
            for port, path in zip(ports, ("device/vbd/0", "device/vif/0"), strict=True)
        ),
        ("device/vbd/0", (), "the backend is in Connected", "bus"),
        ("device/vif/0", (), "the backend is in Connected", "bus"),
    ]
    assert found(guest) == expected


def test_a_backend_that_has_not_let_go_yet_is_in_the_way() -> None:
    """What counts is the moment of the hand-over, not what a slow backend will do later."""
    guest, _ = firmware("block", delay=1)
    guest.reconnect()
    guest.write("device/vbd/0/state", 6)
    guest.reconnect()
    guest.remove_table()
    assert [problem[0] for problem in found(guest)] == ["grant-table", "event-channel"]


def _skew(index: str, amount: int) -> Callable[[Guest], None]:
    def do(guest: Guest) -> None:
        ring = guest.platform.ring
        setattr(ring, index, getattr(ring, index) + amount)

    return do


@pytest.mark.parametrize("reconnection", [True, False])
@pytest.mark.parametrize("index", ["req_cons", "req_prod", "rsp_cons"])
def test_skewed_indices_are_in_the_way(index: str, reconnection: bool) -> None:
    """After a reset all indices are 0; only xenstored may have gone on, and only in the older way."""
    for amount in (1, -1, 5000):
        guest, _ = firmware(reconnection=reconnection)
        reset(guest)
        _skew(index, amount)(guest)
        problems = found(guest)
        assert [(p[0], p[2], p[3]) for p in problems] == [
            ("store", "the ring's indices are not those of a new connection", "bus")
        ]


def test_watch_events_after_a_reset_in_the_older_way_do_not_confuse() -> None:
    """Events that waited in xenstored, or came later, are read and ignored."""
    guest, ports = firmware("block", reconnection=False)
    close_all(guest, ports)
    reset(guest)
    for _ in range(40):
        guest.platform.xenstored.change("backend", "/local/domain/1/device/vbd/0/x", b"")
    guest.platform.xenstored.output.append(pack(M.WATCH_EVENT, 0, 0, b"x" * 2000))
    guest.platform.step()
    assert guest.platform.xenstored.output
    assert found(guest) == []


def test_clearing_where_reconnection_is_offered_leaves_the_watches() -> None:
    """xenstored would have dropped them, had it been asked; an open transaction likewise."""
    guest, _ = firmware()
    guest.start_transaction()
    guest.platform.ring.clear("bus")
    guest.remove_table()
    assert found(guest) == [
        ("store", ("/local/domain/1/device",), "a watch is left", "bus"),
        ("store", (), "a transaction is left", "bus"),
    ]


def test_half_a_request_left_in_xenstored_is_in_the_way() -> None:
    """In the older way xenstored takes the next bytes for the rest of it, and no answer comes."""
    guest, ports = firmware("block", reconnection=False)
    close_all(guest, ports)
    guest.send(pack(M.WRITE, 9, 0, b"x" * 4000)[:100])
    reset(guest)
    assert found(guest) == [
        ("store", (), "xenstored does not answer", "bus"),
        ("device/vbd/0", (), "the store cannot be reached", ""),
    ]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pack(M.READ, 0x4F530000, 0, b"1"), "an answer to somebody else's request came"),
        (pack(M.RESET_WATCHES, 12, 0, b"OK\0"), "an answer to somebody else's request came"),
        (pack(M.READ, 12, 0, b"1")[:12] + b"\xff\xff\xff\xff", "what xenstored sends is no message"),
    ],
)
def test_an_answer_that_the_firmware_should_have_taken_is_in_the_way(message: bytes, reason: str) -> None:
    """In the older way an answer may still be on its way at the reset."""
    guest, _ = firmware(reconnection=False)
    reset(guest)
    guest.platform.xenstored.output.append(message)
    assert found(guest) == [("store", (), reason, "bus")]


def test_a_store_that_answers_wrongly_later_ends_the_way_to_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever xenstored says is recorded and never raised; no device is left out."""

    def lie(self: Xenstored, agent: str, transaction_id: int, payload: bytes) -> bytes:
        self.output.append(pack(M.READ, 3, 0, b"1"))
        return b"vbd\0"

    monkeypatch.setitem(_SERVED, int(M.DIRECTORY), lie)
    guest = Guest("block", "network")
    assert found(guest) == [
        ("device/vbd/0", (), "an answer to somebody else's request came", ""),
        ("device/vif/0", (), "an answer to somebody else's request came", ""),
    ]


def test_a_second_answer_is_somebody_elses() -> None:
    """One answer to each request."""
    guest = Guest(reconnection=False)
    answer = pack(M.RESET_WATCHES, 0x4F530000, 0, b"OK\0")
    guest.platform.xenstored.output += [answer, answer]
    assert found(guest) == [("store", (), "an answer to somebody else's request came", "")]


def test_a_closed_store_port_is_in_the_way() -> None:
    """Without it nobody can talk to xenstored; what can be seen without is still looked at."""
    guest, _ = firmware("block")
    reset(guest)
    guest.hypercalls.event_channel_close(guest.store_port)
    problems = found(guest)
    assert [(p[0], p[2]) for p in problems] == [
        ("store", "the store's event channel was closed"),
        ("grant-table", "a backend still has the firmware's page mapped"),
        ("event-channel", "a backend is still bound to the firmware's event channel"),
        ("device/vbd/0", "the store cannot be reached"),
    ]


def test_a_table_left_in_the_physmap_is_in_the_way() -> None:
    """One frame is enough."""
    guest, ports = firmware("block")
    close_all(guest, ports)
    guest.reconnect()
    for gfn in list(guest.platform.hypervisor.physmap)[:4]:
        guest.hypercalls.remove_from_physmap(gfn)
    assert found(guest) == [("grant-table", (1,), "the firmware's grant table is still in force", "bus")]


@pytest.mark.parametrize(("states", "reason"), [((5,), "the backend is in Closing"), ((5, 6), ""), ((), "")])
def test_a_device_must_be_where_it_can_connect(states: tuple[int, ...], reason: str) -> None:
    """InitWait is good, Closed too, since it leads back there; half closed is not."""
    guest, ports = firmware("console", delay=2)
    close_all(guest, ports)
    for state in states:
        guest.write("device/console/0/state", state)
        while guest.platform.step():
            pass
    reset(guest)
    assert found(guest) == ([("device/console/0", (), reason, "bus")] if reason else [])


def test_missing_nodes_are_in_the_way() -> None:
    """A front end without its folder, without `backend`, or with a backend that is nowhere, cannot be connected."""
    guest = Guest("block", "block", "block")
    guest.remove("device/vbd/0")
    guest.remove("device/vbd/1/backend")
    guest.write("device/vbd/2/backend", "/local/domain/0/nowhere")
    guest.reconnect()
    assert [(p[0], p[2]) for p in found(guest)] == [
        ("device/vbd/0", "the front end's nodes are missing"),
        ("device/vbd/1", "there is no node `backend`"),
        ("device/vbd/2", "the backend is in no state"),
    ]


def test_devices_that_are_taken_away_are_none_of_its_business() -> None:
    """Gone, about to go, or asked to go: OK, as far as nothing of the firmware is held."""
    guest, ports = firmware("block", "block", "block")
    guest.platform.remove_device(0)
    for state in (5, 6):
        guest.write("device/vbd/0/state", state)
    guest.read("domid")
    assert guest.platform.devices[0].removed
    guest.close(guest.platform.devices[1], ports[1], first_reference=10)
    guest.platform.remove_device(1)
    guest.close(guest.platform.devices[2], ports[2], first_reference=12)
    guest.write("device/vbd/2/state", 5)
    guest.platform.remove_device(2)
    reset(guest)
    assert found(guest) == []


def test_a_device_that_never_comes_back_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed whose backend does not react to Initialising, and a backend that does not connect or serve."""
    reasons = []
    for fault in ("stays", "refuses", "silent"):
        guest, ports = firmware("block")
        device = guest.platform.devices[0]
        guest.close(device, ports[0])
        if fault == "stays":
            guest.write("device/vbd/0/state", 6)
            guest.platform.set_delay(0, 5000)
        elif fault == "refuses":
            guest.platform.set_delay(0, 5000)
        reset(guest)
        if fault == "silent":
            monkeypatch.setattr(Backend, "notified", lambda self, agent: None)
        reasons += [problem[2] for problem in found(guest)]
    assert reasons == [
        "the backend stays in Closed",
        "the backend does not connect: it is in InitWait",
        "the backend does not serve a request",
    ]


def test_no_port_left_is_in_the_way() -> None:
    """A firmware that leaked every event channel leaves none to connect with."""
    guest = Guest("block")
    for _ in range(254):
        guest.hypercalls.event_channel_alloc_unbound(0)
    guest.reconnect()
    assert [problem[2] for problem in found(guest)] == ["no event channel is left"]


def test_references_that_backends_still_use_are_left_alone() -> None:
    """The operating system grants through entries that nobody has mapped, so that its device works all the same."""
    guest, _ = firmware("block")
    guest.platform.add_device("network")
    guest.reconnect()
    guest.remove_table()
    problems = found(guest)
    assert [problem[0] for problem in problems] == ["grant-table", "event-channel", "device/vbd/0"]


def test_armed_failures_do_not_touch_the_operating_system() -> None:
    """They are the firmware's."""
    guest = Guest("block")
    for call in ("XS_READ", "XS_WRITE", "XS_DIRECTORY"):
        guest.failures.arm(call, 1, "EIO")
    assert found(guest) == []


def test_taking_over_is_deterministic() -> None:
    """Two machines with the same history end with the same trace."""
    traces = []
    for _ in range(2):
        guest, ports = firmware(*KINDS, delay=2)
        close_all(guest, ports)
        reset(guest)
        take_over(guest.platform)
        traces.append(guest.trace.records)
    assert traces[0] == traces[1]
