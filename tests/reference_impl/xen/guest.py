"""A guest for tests: a small, careful client of the platform that is not one of the project's drivers."""

from __future__ import annotations

from typing import Any

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Record, Trace
from reference_impl.xen.backend import DEVICE_TYPES, REQUEST, RESPONSE, RESPONSE_OFFSET, Backend
from reference_impl.xen.hypervisor import GRANT_TABLE, SHARED_INFO, STORE_EVTCHN
from reference_impl.xen.platform import XenPlatform
from reference_impl.xen.wire import HEADER_SIZE, MessageType, pack, unpack_header

SHARED_INFO_GFN = 0x1000
TABLE_GFN = 0x2000
PAGE_GFN = 0x3000

M = MessageType


class Guest:
    """One agent of the guest, with a platform of its own unless one is given."""

    def __init__(self, *kinds: str, reconnection: bool = True, agent: str = "bus") -> None:
        self.trace = Trace()
        self.failures = Failures(self.trace, lambda call: True)
        self.platform = XenPlatform(self.trace, self.failures, reconnection, kinds)
        self.agent = agent
        self.hypercalls = self.platform.hypercalls(agent)
        self.store_port = self.hypercalls.hvm_get_param(STORE_EVTCHN)
        self.events: list[bytes] = []
        self._next_id = 1
        self._unread = b""

    # ---- store

    def send(self, data: bytes) -> None:
        """Put bytes into the request ring, in as many pieces as it takes."""
        while data:
            written = self.platform.ring.write_request(data)
            data = data[written:]
            self.hypercalls.event_channel_send(self.store_port)

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        """All messages that have come: type, request id, transaction id, payload."""
        found = []
        while True:
            received = self.platform.ring.read_response(1024)
            self._unread += received
            while len(self._unread) >= HEADER_SIZE:
                kind, request_id, transaction_id, length = unpack_header(self._unread)
                if len(self._unread) < HEADER_SIZE + length:
                    break
                payload = self._unread[HEADER_SIZE : HEADER_SIZE + length]
                found.append((kind, request_id, transaction_id, payload))
                self._unread = self._unread[HEADER_SIZE + length :]
            if not received:
                return found
            self.hypercalls.event_channel_send(self.store_port)

    def ask(self, kind: int, payload: bytes, transaction: int = 0) -> bytes | str:
        """One request: the answer's payload, or the error's name. Watch events on the way go to `events`."""
        request_id, self._next_id = self._next_id, self._next_id + 1
        self.send(pack(kind, request_id, transaction, payload))
        answer: bytes | str | None = None
        for got, number, transaction_id, data in self.messages():
            if got == M.WATCH_EVENT:
                self.events.append(data)
                continue
            assert answer is None
            assert (number, transaction_id) == (request_id, transaction)
            assert got in (kind, M.ERROR)
            answer = data[:-1].decode() if got == M.ERROR else data
        assert answer is not None
        return answer

    def read(self, path: str, transaction: int = 0) -> bytes | str:
        """Read a node."""
        return self.ask(M.READ, path.encode() + b"\0", transaction)

    def write(self, path: str, value: object, transaction: int = 0) -> bytes | str:
        """Write a node; `value` is made text."""
        data = value if isinstance(value, bytes) else str(value).encode()
        return self.ask(M.WRITE, path.encode() + b"\0" + data, transaction)

    def remove(self, path: str, transaction: int = 0) -> bytes | str:
        """Remove a node."""
        return self.ask(M.RM, path.encode() + b"\0", transaction)

    def watch(self, path: str, token: str) -> bytes | str:
        """Register a watch."""
        return self.ask(M.WATCH, f"{path}\0{token}\0".encode())

    def start_transaction(self) -> int:
        """Begin a transaction."""
        answer = self.ask(M.TRANSACTION_START, b"\0")
        assert isinstance(answer, bytes)
        return int(answer[:-1])

    def end_transaction(self, transaction: int, commit: bool = True) -> bytes | str:
        """End a transaction."""
        return self.ask(M.TRANSACTION_END, b"T\0" if commit else b"F\0", transaction)

    def reconnect(self) -> None:
        """Reset the ring with xenstored's help."""
        self.platform.ring.connection = 1
        self.hypercalls.event_channel_send(self.store_port)
        assert self.platform.ring.connection == 0

    # ---- hypervisor

    def place_table(self) -> None:
        """Place shared info and grant table in the physmap."""
        self.hypercalls.add_to_physmap(SHARED_INFO, 0, SHARED_INFO_GFN)
        for index in range(4):
            self.hypercalls.add_to_physmap(GRANT_TABLE, index, TABLE_GFN + index)

    def remove_table(self) -> None:
        """Take the grant table out of the physmap."""
        for index in range(4):
            self.hypercalls.remove_from_physmap(TABLE_GFN + index)

    # ---- devices

    def connect(self, device: Backend, state: int = 4, first_reference: int = 8) -> int:
        """Publish the front end of a device and go to `state`; gives the port."""
        port = self.hypercalls.event_channel_alloc_unbound(0)
        for at, node in enumerate(DEVICE_TYPES[device.kind].ring_nodes):
            self.platform.grant_table.grant(self.agent, first_reference + at, 0, PAGE_GFN + at)
            assert self.write(f"{device.path}/{node}", first_reference + at) == b"OK\0"
        assert self.write(f"{device.path}/event-channel", port) == b"OK\0"
        assert self.write(f"{device.path}/state", state) == b"OK\0"
        return port

    def close(self, device: Backend, port: int, first_reference: int = 8) -> None:
        """Take the front end of a device back, step by step, as a good driver does."""
        for state in (5, 6, 1):
            self.write(f"{device.path}/state", state)
            while self.platform.step():
                pass
        for at, node in enumerate(DEVICE_TYPES[device.kind].ring_nodes):
            self.remove(f"{device.path}/{node}")
            assert self.platform.grant_table.end_access(self.agent, first_reference + at)
        self.remove(f"{device.path}/event-channel")
        self.hypercalls.event_channel_close(port)

    def request(
        self, device: Backend, port: int, number: int = 77, operation: int = 0, sector: int = 0
    ) -> tuple[Any, ...]:
        """One request through the device's pages; what the response holds afterwards."""
        platform = self.platform
        REQUEST.pack_into(platform.memory_page(PAGE_GFN), 0, number, operation, sector)
        self.hypercalls.event_channel_send(port)
        last = PAGE_GFN + len(DEVICE_TYPES[device.kind].ring_nodes) - 1
        return RESPONSE.unpack_from(platform.memory_page(last), RESPONSE_OFFSET)

    # ---- trace

    def records(self, *kinds: Kind) -> list[Record]:
        """The records of these kinds."""
        return [Record(*record) for record in self.trace.records if record[0] in kinds]

    def seen(self, *kinds: Kind) -> list[tuple[Any, ...]]:
        """Agent, name, arguments, status, value of the records of these kinds."""
        return [(r.agent, r.name, r.arguments, r.status, r.value) for r in self.records(*kinds)]
