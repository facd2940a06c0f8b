"""The ring world: the driver's xenstore client alone, against a peer that says whatever the scenario tells it to.

Nothing of Xen is here but the shared page. `answer` operations plan what the peer says to the next requests (without a
plan it answers honestly), `skew` moves an index that the peer should have left alone, `ask` makes the client request.
Whatever the peer does, a request must end with an answer or an error, and the client must give back all its memory: both
are promises of the client to us, so a breach is an assertion and not a finding.
"""

from __future__ import annotations

from collections import deque

from reference_impl.failures import ALLOCATIONS, Failures
from reference_impl.scenario import FAILURES, Operation, Scenario
from reference_impl.trace import Kind, StepBudgetExceeded, Trace
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.status import EfiError
from reference_impl.xen.shared_ring import RingError, SharedRing
from reference_impl.xen.wire import HEADER_SIZE, PAYLOAD_MAX, MessageType, pack, unpack_header
from reference_impl.xenbus.xenstore_client import PoolBuffers, Watch, XenStoreClient, XenStoreError

AGENT = "XenBusDxe"
PORT = 1
_HONEST: dict[int, bytes] = {
    MessageType.TRANSACTION_START: b"7\0",
    MessageType.READ: b"4",
    MessageType.DIRECTORY: b"vbd\0vif\0",
}


class Peer:
    """The other end of the ring. Has the one hypercall that the client makes."""

    def __init__(self, ring: SharedRing) -> None:
        self.ring = ring
        self.plan: deque[tuple[str, bytes]] = deque()
        self._heard = b""
        self._unsaid = b""

    def event_channel_send(self, port: int) -> None:
        """The client notifies: hear what it wrote, and answer."""
        try:
            self._heard += self.ring.read_requests()
        except RingError:
            return  # somebody skewed an index; the peer is deaf from now on
        while len(self._heard) >= HEADER_SIZE:
            kind, request_id, transaction, length = unpack_header(self._heard[:HEADER_SIZE])
            if len(self._heard) < HEADER_SIZE + length:
                break
            self._heard = self._heard[HEADER_SIZE + length :]
            what, data = self.plan.popleft() if self.plan else ("honest", b"")
            self._unsaid += _answer(what, data, kind, request_id, transaction)
        self.speak()

    def speak(self) -> bool:
        """Write as much as the ring takes; whether anything is left to say."""
        try:
            self._unsaid = self._unsaid[self.ring.write_response(self._unsaid) :]
        except RingError:
            self._unsaid = b""
        return bool(self._unsaid)


def _answer(what: str, data: bytes, kind: int, request_id: int, transaction: int) -> bytes:
    """The bytes that the peer says to one request."""

    def message(kind: int, request_id: int, body: bytes) -> bytes:
        # A skewed index makes the peer read numbers that nobody sent: any 32 bits, also all of them.
        return pack(kind & 0xFFFF_FFFF, request_id & 0xFFFF_FFFF, transaction, body)

    honest = message(kind, request_id, _HONEST.get(kind, b"OK\0"))
    match what:
        case "honest":
            return honest
        case "nothing":
            return b""
        case "error":
            return message(MessageType.ERROR, request_id, data or b"ENOENT\0")
        case "wrong-id":
            return message(kind, request_id + 1, data) + honest
        case "wrong-type":
            return message(kind + 1, request_id, data)
        case "watch-event":
            return message(MessageType.WATCH_EVENT, 0, data or b"path\0watch-1\0") + honest
        case "too-long":
            return pack(kind, request_id, transaction, bytes(PAYLOAD_MAX + 1))[:HEADER_SIZE] + data
        case "cut":
            return honest[: 8 + len(data)]
        case _:
            return data


def run(scenario: Scenario) -> Trace:
    """Run a scenario of the ring world."""
    trace = Trace()
    failures = Failures(trace, lambda call: call in ALLOCATIONS)
    core = Core(trace, failures)
    services = BootServices(core, AGENT)
    ring = SharedRing(bytearray(4096), trace)
    peer = Peer(ring)
    core.idle = peer.speak
    buffers = PoolBuffers(services, ring)
    client = XenStoreClient(services, peer, ring, PORT, buffers)  # type: ignore[arg-type]
    watches: list[Watch] = []
    before = core.memory.live_count(AGENT)
    try:
        for index, operation in enumerate(scenario.operations):
            trace.add(Kind.OPERATION, "scenario", operation.kind, operation.arguments, None, index)
            _do(operation, client, peer, ring, failures, watches)
    except StepBudgetExceeded:
        return trace
    client.close()
    assert core.memory.live_count(AGENT) == before, "the client keeps memory"
    return trace


def _do(
    operation: Operation,
    client: XenStoreClient,
    peer: Peer,
    ring: SharedRing,
    failures: Failures,
    watches: list[Watch],
) -> None:
    match operation:
        case ("ask", (request, path)):
            try:
                _ask(request, path, client, watches)
            except (XenStoreError, EfiError):
                return  # it ended with an error: that is all that is asked for
        case ("answer", (what, data)):
            peer.plan.append((what, data))
        case ("skew", (index, amount)):
            setattr(ring, index, getattr(ring, index) + amount & 0xFFFFFFFF)
        case ("fail", (failure, nth)):
            failures.arm(*FAILURES[failure][:1], nth, FAILURES[failure][1])


def _ask(request: str, path: str, client: XenStoreClient, watches: list[Watch]) -> None:
    match request:
        case "READ":
            client.read(path)
        case "WRITE":
            client.write(path, "1")
        case "DIRECTORY":
            client.directory(path)
        case "RM":
            client.remove(path)
        case "WATCH":
            watches.append(client.watch(path))
        case "UNWATCH" if watches:
            client.unwatch(watches.pop())
        case "TRANSACTION_START":
            client.start_transaction()
        case "TRANSACTION_END":
            client.end_transaction(1, True)
