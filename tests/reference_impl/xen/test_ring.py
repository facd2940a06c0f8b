"""The wire format and the shared ring."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.failures import CALLS
from reference_impl.trace import Kind, Trace
from reference_impl.xen import wire
from reference_impl.xen.shared_ring import RING_SIZE, RingError, SharedRing

INDICES = ("req_cons", "req_prod", "rsp_cons", "rsp_prod")


def ring() -> SharedRing:
    """An empty ring on a page of its own."""
    return SharedRing(bytearray(4096), Trace())


def test_a_message_is_four_words_and_its_payload() -> None:
    """Type, request id, transaction id and length stand in little-endian order before the payload."""
    data = wire.pack(wire.MessageType.READ, 7, 9, b"name\0")
    assert data == struct.pack("<4I", 2, 7, 9, 5) + b"name\0"
    assert wire.unpack_header(b"xx" + data, 2) == (2, 7, 9, 5)


def test_every_armable_request_has_a_type_and_known_errors() -> None:
    """What a scenario can let fail is a message type, and every refusal an error name of the protocol."""
    armable = {call[3:]: errors for call, errors in CALLS.items() if call.startswith("XS_")}
    assert armable
    for name, errors in armable.items():
        assert wire.MessageType[name].name == name
        assert all(error in wire.ERRORS for error in errors)


def test_the_page_has_xens_layout() -> None:
    """Indices, features and connection stand where io/xs_wire.h puts them; all are readable and writable words."""
    made = ring()
    names = (*INDICES, "server_features", "connection")
    for at, name in enumerate(names):
        setattr(made, name, at + 0x1_0000_0001)
    assert struct.unpack_from("<6I", made.page, 2048) == (1, 2, 3, 4, 5, 6)
    assert [getattr(made, name) for name in names] == [1, 2, 3, 4, 5, 6]


def test_a_full_ring_takes_no_more() -> None:
    """A writer learns how many bytes fitted; the reader makes room."""
    made = ring()
    assert made.write_request(b"a" * 1000) == 1000
    assert made.write_request(b"b" * 100) == 24
    assert made.write_request(b"b") == 0
    assert made.read_requests() == b"a" * 1000 + b"b" * 24
    assert made.read_requests() == b""
    assert made.response_space() == RING_SIZE
    assert made.write_response(b"c" * 2000) == RING_SIZE
    assert made.response_available() == RING_SIZE
    assert made.read_response(10) == b"c" * 10
    assert made.response_space() == 10


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.binary(max_size=1500), st.integers(0, 1500)), max_size=8),
    st.booleans(),
)
def test_bytes_arrive_in_order_across_both_wraps(start: int, steps: list[tuple[bytes, int]], memory: bool) -> None:
    """Whatever the indices begin with, bytes come out as they went in: at the ring's end and at 2**32 alike."""
    page = bytearray(4096)
    made = SharedRing(memoryview(page) if memory else page, Trace())
    for name in INDICES:
        setattr(made, name, start)
    sent = received = asked = taken = b""
    for data, size in steps:
        sent += data[: made.write_response(data)]
        received += made.read_response(size)
        asked += data[: made.write_request(data)]
        taken += made.read_requests()
        assert made.response_available() == len(sent) - len(received)
    received += made.read_response(RING_SIZE)
    assert (received, taken) == (sent, asked)
    assert page[2072:] == bytes(4096 - 2072)


@pytest.mark.parametrize(
    ("index", "calls"),
    [
        ("req_prod", ("read_requests", "write_request")),
        ("rsp_prod", ("response_available", "read_response", "write_response", "response_space")),
    ],
)
def test_impossible_indices_are_an_error_at_the_end_that_looks(index: str, calls: tuple[str, ...]) -> None:
    """More than 1024 bytes cannot be in the ring; 1024 can."""
    for call in calls:
        made = ring()
        arguments = {"write_request": (b"x",), "write_response": (b"x",), "read_response": (1,)}.get(call, ())
        setattr(made, index, 1024)
        getattr(made, call)(*arguments)
        for impossible in (1025, 1 << 31, -1):
            made = ring()
            setattr(made, index, impossible)
            with pytest.raises(RingError, match="ring"):
                getattr(made, call)(*arguments)


def test_clear_leaves_a_ring_as_the_older_way_wants_it() -> None:
    """Both rings are 0xff, the indices 0, features and connection as they were; the generation is over."""
    made = ring()
    made.server_features, made.connection = 1, 0
    made.write_request(b"abc")
    made.take_into_use("bus")
    assert made.user == "bus"
    made.clear("bus")
    made.clear("disk")
    assert made.page[:2048] == b"\xff" * 2048
    assert made.page[2048:2064] == bytes(16)
    assert made.server_features == 1
    assert (made.user, made.reset_by) == ("", "disk")
    assert [record[:2] + record[5:] for record in made.trace.records] == [
        (Kind.CONNECTION, "bus", "ring", (1,), None, None),
        (Kind.RESET, "bus", "ring", (1,), None, "cleared"),
        (Kind.RESET, "disk", "ring", (1,), None, "cleared"),
    ]
