"""The page that a guest and xenstored share: two rings of bytes, their indices, and the state of the connection.

    0     request ring, 1024 bytes       guest → xenstored
    1024  response ring, 1024 bytes      xenstored → guest
    2048  req_cons, req_prod, rsp_cons, rsp_prod: 32-bit, free-running; modulo 1024 they are places in the ring
    2064  server_features: bit 0 is RECONNECTION
    2068  connection: 0 connected, 1 the guest asks for a new connection

All state of the protocol is in the page itself, so that the memory of an emulated guest can stand behind it. What is
kept beside it is for the record: the number of the connection's *generation*. A generation begins with the first
request after a reset (or at all); a reset of a connection that nobody has used since the last one carries the old
number, so that a second reset of the same generation can be seen.

Source: Xen, public header io/xs_wire.h.
"""

from __future__ import annotations

import struct

from reference_impl.trace import Kind, Trace

RING_SIZE = 1024
RECONNECTION_FEATURE = 1
CONNECTED = 0
RECONNECT = 1

_REQUESTS, _RESPONSES = 0, 1024
_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD, _FEATURES, _CONNECTION = 2048, 2052, 2056, 2060, 2064, 2068
_MASK = RING_SIZE - 1
_CONNECTION_RECORD, _RESET_RECORD = int(Kind.CONNECTION), int(Kind.RESET)
_MASK32 = 0xFFFFFFFF
_PAIR = struct.Struct("<2I")
_WORD = struct.Struct("<I")
_CLEARED = b"\xff" * (2 * RING_SIZE)
_ZERO_INDICES = bytes(16)

_pair_at = _PAIR.unpack_from
_word_at = _WORD.unpack_from
_put_word = _WORD.pack_into


class RingError(Exception):
    """The indices say that the ring holds more than its size: no honest peer writes such a thing."""


class SharedRing:
    """Both ends of the xenstore ring in `page` (4096 bytes). Any method but the index properties may raise RingError.

    generation  number of the connection's generation, 0 before the first
    user        who took this generation into use; "" while nobody has
    reset_by    who reset the connection last; "" while nobody has
    """

    __slots__ = ("generation", "page", "reset_by", "trace", "user")

    def __init__(self, page: bytearray | memoryview, trace: Trace) -> None:
        self.page = page
        self.trace = trace
        self.generation = 0
        self.user = ""
        self.reset_by = ""

    # ---- the guest's end ------------------------------------------------------------------------------------------

    def write_request(self, data: bytes | bytearray | memoryview) -> int:
        """Put as much of `data` into the request ring as fits. Gives the number of bytes."""
        cons, prod = _pair_at(self.page, _REQ_CONS)
        written = self._put(_REQUESTS, cons, prod, data)
        if written:
            _put_word(self.page, _REQ_PROD, (prod + written) & _MASK32)
        return written

    def response_available(self) -> int:
        """How many bytes wait in the response ring."""
        cons, prod = _pair_at(self.page, _RSP_CONS)
        used = (prod - cons) & _MASK32
        if used > RING_SIZE:
            raise RingError(f"response ring: rsp_prod {prod:#x}, rsp_cons {cons:#x}")
        return int(used)

    def read_response(self, size: int) -> bytes:
        """Take at most `size` bytes out of the response ring."""
        cons, prod = _pair_at(self.page, _RSP_CONS)
        data = self._take(_RESPONSES, cons, prod, size)
        if data:
            _put_word(self.page, _RSP_CONS, (cons + len(data)) & _MASK32)
        return data

    def clear(self, agent: str) -> None:
        """Reset the connection in the older way, without xenstored: both rings 0xff, all indices 0."""
        page = self.page
        if not self.user and self.req_prod != self.req_cons:
            self.take_into_use(agent)  # it was used, only that xenstored never looked
        page[0 : 2 * RING_SIZE] = _CLEARED
        page[_REQ_CONS : _REQ_CONS + 16] = _ZERO_INDICES
        self.record_reset(agent, "cleared")

    # ---- xenstored's end ------------------------------------------------------------------------------------------

    def read_requests(self) -> bytes:
        """Take everything out of the request ring."""
        cons, prod = _pair_at(self.page, _REQ_CONS)
        data = self._take(_REQUESTS, cons, prod, RING_SIZE)
        if data:
            _put_word(self.page, _REQ_CONS, prod)
        return data

    def response_space(self) -> int:
        """How many bytes the response ring has left."""
        return RING_SIZE - self.response_available()

    def write_response(self, data: bytes | bytearray | memoryview) -> int:
        """Put as much of `data` into the response ring as fits. Gives the number of bytes."""
        cons, prod = _pair_at(self.page, _RSP_CONS)
        written = self._put(_RESPONSES, cons, prod, data)
        if written:
            _put_word(self.page, _RSP_PROD, (prod + written) & _MASK32)
        return written

    def reconnect(self, agent: str) -> None:
        """Reset the connection from xenstored's end, as `agent` asked for it: indices 0, connected again."""
        self.page[_REQ_CONS : _REQ_CONS + 16] = _ZERO_INDICES
        self.connection = CONNECTED
        self.record_reset(agent, "reconnected")

    # ---- generations ----------------------------------------------------------------------------------------------

    def take_into_use(self, agent: str) -> None:
        """Begin a generation: `agent` has sent the first request since the last reset. Recorded as CONNECTION."""
        self.generation += 1
        self.user = agent
        self.trace.add(_CONNECTION_RECORD, agent, "ring", (self.generation,))

    def record_reset(self, agent: str, means: str) -> None:
        """End a generation. Recorded as RESET."""
        self.user = ""
        self.reset_by = agent
        self.trace.add(_RESET_RECORD, agent, "ring", (self.generation,), None, means)

    # ---- words of the page ----------------------------------------------------------------------------------------

    @property
    def req_cons(self) -> int:
        """Requests taken by xenstored, in bytes, modulo 2**32."""
        return int(_word_at(self.page, _REQ_CONS)[0])

    @req_cons.setter
    def req_cons(self, value: int) -> None:
        _put_word(self.page, _REQ_CONS, value & _MASK32)

    @property
    def req_prod(self) -> int:
        """Requests written by the guest, in bytes, modulo 2**32."""
        return int(_word_at(self.page, _REQ_PROD)[0])

    @req_prod.setter
    def req_prod(self, value: int) -> None:
        _put_word(self.page, _REQ_PROD, value & _MASK32)

    @property
    def rsp_cons(self) -> int:
        """Responses taken by the guest, in bytes, modulo 2**32."""
        return int(_word_at(self.page, _RSP_CONS)[0])

    @rsp_cons.setter
    def rsp_cons(self, value: int) -> None:
        _put_word(self.page, _RSP_CONS, value & _MASK32)

    @property
    def rsp_prod(self) -> int:
        """Responses written by xenstored, in bytes, modulo 2**32."""
        return int(_word_at(self.page, _RSP_PROD)[0])

    @rsp_prod.setter
    def rsp_prod(self, value: int) -> None:
        _put_word(self.page, _RSP_PROD, value & _MASK32)

    @property
    def server_features(self) -> int:
        """What xenstored offers: RECONNECTION_FEATURE or 0."""
        return int(_word_at(self.page, _FEATURES)[0])

    @server_features.setter
    def server_features(self, value: int) -> None:
        _put_word(self.page, _FEATURES, value & _MASK32)

    @property
    def connection(self) -> int:
        """CONNECTED, or RECONNECT while the guest waits for a new connection."""
        return int(_word_at(self.page, _CONNECTION)[0])

    @connection.setter
    def connection(self, value: int) -> None:
        _put_word(self.page, _CONNECTION, value & _MASK32)

    # ---- bytes ----------------------------------------------------------------------------------------------------

    def _put(self, base: int, cons: int, prod: int, data: bytes | bytearray | memoryview) -> int:
        used = (prod - cons) & _MASK32
        if used > RING_SIZE:
            raise RingError(f"{_NAMES[base]} ring: prod {prod:#x}, cons {cons:#x}")
        count = len(data)
        if count > RING_SIZE - used:
            count = RING_SIZE - used
            data = data[:count]
        start = prod & _MASK
        page = self.page
        if start + count <= RING_SIZE:
            page[base + start : base + start + count] = data
        else:
            first = RING_SIZE - start
            page[base + start : base + RING_SIZE] = data[:first]
            page[base : base + count - first] = data[first:]
        return count

    def _take(self, base: int, cons: int, prod: int, size: int) -> bytes:
        count = (prod - cons) & _MASK32
        if count > RING_SIZE:
            raise RingError(f"{_NAMES[base]} ring: prod {prod:#x}, cons {cons:#x}")
        if size < count:
            count = size
        start = cons & _MASK
        page = self.page
        if start + count <= RING_SIZE:
            return bytes(page[base + start : base + start + count])
        return bytes(page[base + start : base + RING_SIZE]) + bytes(page[base : base + start + count - RING_SIZE])


_NAMES = {_REQUESTS: "request", _RESPONSES: "response"}
