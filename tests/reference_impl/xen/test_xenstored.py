"""xenstored: requests, watches, transactions, and the conversation over the ring."""

from __future__ import annotations

import pytest

from reference_impl.failures import CALLS
from reference_impl.trace import Kind
from reference_impl.xen.wire import MessageType as M
from reference_impl.xen.wire import pack
from reference_impl.xen.xenstored import WATCHES_MAX
from tests.reference_impl.xen.guest import Guest

HOME = "/local/domain/1"
OK = b"OK\0"


def test_relative_and_absolute_paths_name_the_same_node() -> None:
    """A relative path is one below the guest's own folder."""
    guest = Guest("block")
    assert guest.read("device/vbd/0/backend") == b"/local/domain/0/backend/vbd/1/0"
    assert guest.read(f"{HOME}/device/vbd/0/backend") == b"/local/domain/0/backend/vbd/1/0"
    assert guest.read("/local/domain/0/backend/vbd/1/0/sectors") == b"2097152"


def test_directory_lists_children_in_the_order_of_their_making() -> None:
    """Names only, each ended by NUL, without what is deeper; the root has children too; a leaf has none."""
    guest = Guest("network", "block", "block")
    assert guest.ask(M.DIRECTORY, b"device\0") == b"vif\0vbd\0"
    assert guest.ask(M.DIRECTORY, b"device/vbd\0") == b"0\x001\0"
    assert guest.ask(M.DIRECTORY, b"/\0") == b"local\0"
    assert guest.ask(M.DIRECTORY, b"device/vbd/0/state\0") == b""
    assert guest.ask(M.DIRECTORY, b"device/usb\0") == "ENOENT"


def test_write_makes_what_is_missing_and_rm_takes_all_below() -> None:
    """Parents of a new node come into being empty; removing takes the whole folder; a second time it is OK still."""
    guest = Guest("block")
    assert guest.write("data/a/b/c", "x") == OK
    assert guest.read("data/a/b") == b""
    assert guest.ask(M.DIRECTORY, b"data\0") == b"a\0"
    assert guest.remove("data/a") == OK
    assert guest.read("data/a/b/c") == "ENOENT"
    assert guest.remove("data/a") == OK
    assert guest.remove("data/a/b/c") == "ENOENT"
    assert guest.ask(M.MKDIR, b"data/d\0") == OK
    assert guest.write("data/d", "kept") == OK
    assert guest.ask(M.MKDIR, b"data/d\0") == OK
    assert guest.read("data/d") == b"kept"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (M.READ, b""),
        (M.READ, b"device"),
        (M.READ, b"\0"),
        (M.READ, b"device\0x\0"),
        (M.READ, b"device/\0"),
        (M.READ, b"device//vbd\0"),
        (M.READ, b"dev ice\0"),
        (M.READ, b"d" * 2049 + b"\0"),
        (M.READ, b"/" + b"d" * 3072 + b"\0"),
        (M.WRITE, b"data"),
        (M.WRITE, b"\0value"),
        (M.RM, b"/\0"),
        (M.WATCH, b"device\0"),
        (M.WATCH, b"device\0token"),
        (M.UNWATCH, b"device\0a\0b\0"),
        (M.TRANSACTION_END, b"X\0"),
        (M.GET_DOMAIN_PATH, b"one\0"),
        (M.GET_DOMAIN_PATH, b"123456\0"),
    ],
)
def test_malformed_requests_are_invalid(kind: M, payload: bytes) -> None:
    """What is no path, lacks its NUL or has too many arguments is EINVAL."""
    assert Guest("block").ask(kind, payload) == "EINVAL"


def test_longest_paths_are_missing_and_not_invalid() -> None:
    """2048 bytes relative and 3072 absolute are still paths."""
    guest = Guest()
    assert guest.read("d" * 2048) == "ENOENT"
    assert guest.read("/" + "d" * 3071) == "ENOENT"


@pytest.mark.parametrize(
    "path",
    [
        "/local",
        "/local/domain/0/x",
        "device/vbd/0x",
        "/local/domain/1",
        "device",
        "device/vbd",
        "device/vbd/7/state",
        "name",
        "new",
    ],
)
def test_the_guest_writes_only_where_it_may(path: str) -> None:
    """Its own data, and folders of devices that exist; everything else is EACCES, in a transaction too."""
    guest = Guest("block")
    transaction = guest.start_transaction()
    assert guest.write(path, "x") == "EACCES"
    assert guest.write(path, "x", transaction) == "EACCES"
    assert guest.remove(path) == "EACCES"
    assert guest.write("device/vbd/0/new", "x") == OK
    assert guest.write("device/vbd/0/new", "y") == OK


def test_requests_that_are_not_served_say_so() -> None:
    """What only the control domain may ask is EACCES, what the model lacks or nobody knows ENOSYS."""
    guest = Guest()
    assert guest.ask(M.INTRODUCE, b"1\0") == "EACCES"
    assert guest.ask(M.GET_PERMS, b"device\0") == "ENOSYS"
    assert guest.ask(99, b"") == "ENOSYS"
    assert guest.ask(M.GET_DOMAIN_PATH, b"12\0") == b"/local/domain/12\0"
    assert [r.name for r in guest.records(Kind.XENSTORE)][-2:] == ["type 99", "GET_DOMAIN_PATH"]


def test_a_long_answer_is_too_big() -> None:
    """A listing of more than 4096 bytes is E2BIG."""
    guest = Guest()
    for index in range(3):
        guest.write("data/" + str(index) + "x" * 1500, "")
    assert guest.ask(M.DIRECTORY, b"data\0") == "E2BIG"


def test_a_watch_fires_at_once_and_for_everything_below() -> None:
    """The event names the path as the watch was given, relative or absolute; a neighbour's name is not below."""
    guest = Guest("block")
    assert guest.watch("device/vbd/0", "one") == OK
    assert guest.watch(f"{HOME}/device/vbd/0/state", "two") == OK
    assert guest.events == [b"device/vbd/0\0one\0", f"{HOME}/device/vbd/0/state\0two\0".encode()]
    guest.events.clear()
    guest.write("device/vbd/0/state", 1)
    assert guest.events == [b"device/vbd/0/state\0one\0", f"{HOME}/device/vbd/0/state\0two\0".encode()]
    guest.events.clear()
    guest.write("device/vbd/0/new", 1)
    guest.write("data/vbd", 1)
    assert guest.events == [b"device/vbd/0/new\0one\0"]
    guest.events.clear()
    assert guest.ask(M.UNWATCH, b"device/vbd/0\0one\0") == OK
    guest.remove("device/vbd/0")
    assert guest.events == [f"{HOME}/device/vbd/0/state\0two\0".encode()]


def test_the_root_and_special_watches() -> None:
    """A watch of the root sees everything; the special ones can be registered and taken back."""
    guest = Guest()
    assert guest.watch("/", "root") == OK
    assert guest.watch("@releaseDomain", "gone") == OK
    guest.write("data/x", 1)
    assert guest.events == [b"/\0root\0", b"@releaseDomain\0gone\0", f"{HOME}/data/x\0root\0".encode()]
    assert guest.ask(M.UNWATCH, b"@releaseDomain\0gone\0") == OK
    assert guest.ask(M.UNWATCH, b"@releaseDomain\0gone\0") == "ENOENT"


def test_watches_are_known_by_path_and_token_and_limited() -> None:
    """The same again is EEXIST, however the path is written; another token is another watch; then E2BIG."""
    guest = Guest()
    assert guest.watch("data", "t") == OK
    assert guest.watch(f"{HOME}/data", "t") == "EEXIST"
    for index in range(WATCHES_MAX - 1):
        assert guest.watch("data", str(index)) == OK
    assert guest.watch("data", "u") == "E2BIG"
    assert guest.ask(M.RESET_WATCHES, b"\0") == OK
    assert guest.watch("data", "u") == OK


def test_a_transaction_is_seen_by_others_only_when_it_ends() -> None:
    """Inside, its own changes are visible; outside, and to watches, they come at the end, all of them."""
    guest = Guest("block")
    guest.watch("data", "t")
    guest.events.clear()
    transaction = guest.start_transaction()
    assert guest.write("data/a", 1, transaction) == OK
    assert guest.ask(M.MKDIR, b"data/b\0", transaction) == OK
    assert guest.ask(M.DIRECTORY, b"data\0", transaction) == b"a\0b\0"
    assert guest.read("data/a") == "ENOENT"
    assert guest.events == []
    assert guest.end_transaction(transaction) == OK
    assert guest.read("data/a") == b"1"
    assert guest.events == [b"data/a\0t\0", b"data/b\0t\0"]
    assert guest.read("data/a", transaction) == "ENOENT"
    assert guest.end_transaction(transaction) == "ENOENT"


def test_an_aborted_transaction_leaves_nothing() -> None:
    """The answer is OK, and the tree as before."""
    guest = Guest("block")
    transaction = guest.start_transaction()
    assert guest.end_transaction(0) == "ENOENT"
    guest.remove("device/vbd/0/state", transaction)
    assert guest.read("device/vbd/0/state", transaction) == "ENOENT"
    assert guest.end_transaction(transaction, commit=False) == OK
    assert guest.read("device/vbd/0/state") == b"1"


@pytest.mark.parametrize("touch", ["read", "write", "list", "sibling"])
def test_a_transaction_conflicts_with_changes_of_what_it_touched(touch: str) -> None:
    """Looked at, changed, listed, or another child made in the same folder: EAGAIN, and nothing is done."""
    guest = Guest()
    guest.write("data/a", "old")
    transaction = guest.start_transaction()
    if touch == "read":
        guest.read("data/a", transaction)
    elif touch == "list":
        guest.ask(M.DIRECTORY, b"data\0", transaction)
    elif touch == "sibling":
        guest.write("data/c", "new", transaction)
    else:
        guest.write("data/a", "mine", transaction)
    guest.write("data/a", "theirs") if touch in ("read", "write") else guest.write("data/b", "new")
    assert guest.end_transaction(transaction) == "EAGAIN"
    assert guest.read("data/a") == (b"theirs" if touch in ("read", "write") else b"old")


def test_a_transaction_does_not_conflict_with_changes_elsewhere() -> None:
    """What it never touched may change."""
    guest = Guest("block")
    transaction = guest.start_transaction()
    guest.write("device/vbd/0/x", 1, transaction)
    guest.write("data/other", 2)
    assert guest.end_transaction(transaction) == OK


def test_transactions_are_limited_and_do_not_nest() -> None:
    """EBUSY inside of another, ENOSPC after ten."""
    guest = Guest()
    first = guest.start_transaction()
    assert guest.ask(M.TRANSACTION_START, b"\0", first) == "EBUSY"
    for _ in range(9):
        guest.start_transaction()
    assert guest.ask(M.TRANSACTION_START, b"\0") == "ENOSPC"


def test_a_message_may_come_in_pieces_and_be_longer_than_the_ring() -> None:
    """Byte by byte, or 3000 bytes of value: one request, one answer; the long value comes back whole."""
    guest = Guest()
    value = bytes(range(256)) * 12
    assert guest.write("data/long", value) == OK
    for byte in pack(M.READ, 500, 0, b"data/long\0"):
        guest.send(bytes([byte]))
    assert guest.messages() == [(M.READ, 500, 0, value)]
    record = guest.records(Kind.XENSTORE)[-1]
    assert (record.arguments, record.value) == (("data/long",), value[:64])


def test_several_requests_at_once_are_answered_in_order() -> None:
    """One notification, three requests, three answers."""
    guest = Guest("block")
    guest.send(b"".join(pack(M.READ, number, 0, b"domid\0") for number in (7, 8, 9)))
    assert guest.messages() == [(M.READ, number, 0, b"1") for number in (7, 8, 9)]


def test_messages_wait_for_room_and_go_whole() -> None:
    """A full response ring holds whole messages; the rest follows when the guest has made room."""
    guest = Guest()
    guest.send(b"".join(pack(M.WATCH, number, 0, b"data\0%03d\0" % number) for number in range(30)))
    ring = guest.platform.ring
    assert 1024 - 27 < ring.response_available() <= 1024
    assert guest.platform.xenstored.output
    before = ring.rsp_prod
    guest.platform.step()
    assert ring.rsp_prod == before
    messages = guest.messages()
    assert [number for kind, number, _, _ in messages if kind == M.WATCH] == list(range(30))
    assert sum(kind == M.WATCH_EVENT for kind, *_ in messages) == 30


def test_answers_raise_the_stores_event() -> None:
    """The guest's port of the store is pending after an answer."""
    guest = Guest()
    guest.place_table()
    guest.read("domid")
    assert guest.hypercalls.pending(guest.store_port)


@pytest.mark.parametrize("index", ["req_prod", "rsp_prod"])
def test_broken_indices_end_the_conversation_until_a_reconnection(index: str) -> None:
    """A guest whose indices are impossible is ignored; nothing is raised in the platform."""
    guest = Guest()
    ring = guest.platform.ring
    guest.read("domid")
    ring.write_request(pack(M.READ, 1, 0, b"domid\0"))
    setattr(ring, index, getattr(ring, index) + 5000)
    guest.hypercalls.event_channel_send(guest.store_port)
    assert guest.seen(Kind.XENSTORE)[-1][1:4] == (
        "connection ignored",
        ("request ring" if index == "req_prod" else "response ring",),
        "EIO",
    )
    count = len(guest.records(Kind.XENSTORE))
    guest.hypercalls.event_channel_send(guest.store_port)
    guest.platform.step()
    assert len(guest.records(Kind.XENSTORE)) == count
    guest.reconnect()
    assert guest.read("domid") == b"1"


def test_an_oversized_message_ends_the_conversation() -> None:
    """A header that announces more than 4096 bytes is no message of the protocol."""
    guest = Guest()
    guest.send(pack(M.READ, 1, 0, b"")[:12] + b"\x01\x10\0\0")
    guest.send(pack(M.READ, 2, 0, b"domid\0"))
    assert guest.messages() == []
    assert [r.status for r in guest.records(Kind.XENSTORE)] == ["E2BIG"]


def test_reconnection_drops_xenstoreds_half() -> None:
    """Half a request, waiting answers, watches and transactions are gone; the indices are 0; the page says connected."""
    guest = Guest()
    guest.watch("data", "t")
    guest.start_transaction()
    guest.platform.ring.write_request(pack(M.READ, 1, 0, b"domid\0")[:10])
    guest.reconnect()
    platform = guest.platform
    assert bytes(platform.store_page[2048:2064]) == bytes(16)
    assert not platform.xenstored.watches
    assert not platform.xenstored.transactions
    assert platform.xenstored.pending == b""
    assert guest.read("domid") == b"1"
    assert guest.events == [b"data\0t\0"]


def test_the_older_way_keeps_watches_and_transactions() -> None:
    """Clearing the ring tells xenstored nothing, and an asked reconnection is not noticed where it is not offered."""
    guest = Guest(reconnection=False)
    guest.watch("data", "t")
    transaction = guest.start_transaction()
    guest.platform.ring.clear("bus")
    guest.platform.ring.connection = 1
    assert guest.write("data/a", 1) == OK
    assert guest.events[-1] == b"data/a\0t\0"
    assert guest.platform.ring.connection == 1
    assert guest.ask(M.RESET_WATCHES, b"\0") == OK
    assert guest.end_transaction(transaction) == "ENOENT"


def test_generations_begin_with_a_request_and_end_with_a_reset() -> None:
    """A reset before any use has number 0, a second reset of one generation shows by its number."""
    guest = Guest()
    guest.reconnect()
    guest.read("domid")
    guest.read("domid")
    guest.reconnect()
    guest.platform.ring.clear("disk")
    guest.read("domid")
    assert [(r.kind, r.agent, r.arguments, r.value) for r in guest.records(Kind.CONNECTION, Kind.RESET)] == [
        (Kind.RESET, "bus", (0,), "reconnected"),
        (Kind.CONNECTION, "bus", (1,), None),
        (Kind.RESET, "bus", (1,), "reconnected"),
        (Kind.RESET, "disk", (1,), "cleared"),
        (Kind.CONNECTION, "bus", (2,), None),
    ]


def test_each_request_is_one_record_inside_the_notification() -> None:
    """Agent, name, path and value, outcome and answer; deeper than the hypercall that caused it."""
    guest = Guest("block")
    guest.write("device/vbd/0/x", "v" * 100)
    guest.read("device/usb/0")
    assert [(r.depth, *r[5:]) for r in guest.records(Kind.XENSTORE)] == [
        (1, "WRITE", ("device/vbd/0/x", b"v" * 64), "OK", b"OK\0"),
        (1, "READ", ("device/usb/0",), "ENOENT", b"ENOENT\0"),
    ]


@pytest.mark.parametrize("call", [call for call in CALLS if call.startswith("XS_")])
def test_every_armable_request_can_fail(call: str) -> None:
    """The answer carries the armed error, nothing is done, and the next request of that kind works."""
    guest = Guest("block")
    kind = M[call[3:]]
    guest.write("data/a", 1)
    guest.watch("data", "w")
    transaction = guest.start_transaction() if kind == M.TRANSACTION_END else 0
    payload = {
        M.WRITE: b"data/a\0x",
        M.WATCH: b"data\0t\0",
        M.UNWATCH: b"data\0w\0",
        M.TRANSACTION_START: b"\0",
        M.TRANSACTION_END: b"T\0",
    }.get(kind, b"data/a\0")
    error = CALLS[call][-1]
    guest.failures.arm(call, 1, error)
    assert guest.ask(kind, payload, transaction) == error
    assert [r.status for r in guest.records(Kind.INJECTED)] == [error]
    answer = guest.ask(kind, payload, transaction)
    if kind == M.TRANSACTION_END:
        assert answer == "ENOENT", "a transaction whose end is refused is over"
    else:
        assert isinstance(answer, bytes), answer


def test_cleanup_of_a_closing_device_does_not_fail() -> None:
    """Armed failures wait while the device closes, unless a hostile environment says otherwise."""
    guest = Guest("block")
    state = "device/vbd/0/state"
    for call in ("XS_WRITE", "XS_READ", "XS_TRANSACTION_START", "XS_WATCH", "XS_DIRECTORY"):
        guest.failures.arm(call, 1, "EIO")
    assert guest.write(state, 5) == OK, "writing Closing never fails"
    assert guest.write("device/vbd/0/x", 1) == OK
    assert guest.read("/local/domain/0/backend/vbd/1/0/state") == b"5"
    assert guest.start_transaction()
    assert guest.read("domid") == "EIO", "no device's node"
    guest.platform.cleanup_may_fail = True
    assert guest.write(state, 6) == "EIO"


def test_aborting_a_transaction_does_not_fail() -> None:
    """It is cleanup; the armed failure waits for a commit."""
    guest = Guest("block")
    guest.failures.arm("XS_TRANSACTION_END", 1, "EIO")
    assert guest.end_transaction(guest.start_transaction(), commit=False) == OK
    assert guest.end_transaction(guest.start_transaction()) == "EIO"


def test_an_armed_failure_waits_for_its_own_request() -> None:
    """Other requests are not touched."""
    guest = Guest("block")
    guest.failures.arm("XS_RM", 1, "EACCES")
    assert guest.read("domid") == b"1"
    assert guest.remove("data/x") == "EACCES"


def test_a_connecting_state_write_can_fail() -> None:
    """Initialised and Connected are no cleanup."""
    guest = Guest("block")
    guest.failures.arm("XS_WRITE", 1, "EIO")
    assert guest.write("device/vbd/0/state", 4) == "EIO"
    assert guest.write("device/vbd/0/state", 4) == OK
