"""The driver's side of the xenstore conversation: requests, answers and watch events over the shared ring.

One client belongs to one connection. It has one request under way at a time, as the bus driver has. What arrives between
a request and its answer are watch events, which are noted on their watch, and answers to requests that were given up.

Where the memory for paths and messages comes from, and how it waits, is the teardown design's choice:

* `PoolBuffers` does both as the shipped driver: pool for every path, value, message and body, and a timer for each wait.
* `FixedBuffers` works in one page that the bus allocated when it started; no memory service is called afterwards.

The peer is not trusted: whatever bytes it writes, a request ends with an answer or an `XenStoreError`. Where it
writes nothing, the driver that ships waits for ever.
Sources: xen/include/public/io/xs_wire.h for the format; docs/misc/xenstore-ring.txt for the reset.
"""

from __future__ import annotations

from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, EVT_NOTIFY_WAIT, EVT_TIMER, TPL_NOTIFY, TimerDelay
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.hypervisor import HypercallError, Hypercalls
from reference_impl.xen.shared_ring import RECONNECTION_FEATURE, RingError, SharedRing
from reference_impl.xen.wire import HEADER_SIZE, PAYLOAD_MAX, MessageType, pack, unpack_header

POLL_INTERVAL_US = 100
WAIT_100NS = 10_000_000
PATIENCE = 200
"""Pauses without any news after which a peer counts as dead."""

ENDLESS = 1 << 62
"""The patience of the driver that ships, which waits for an answer of xenstored for as long as it takes."""

MESSAGES_MAX = 1000
"""Messages between a request and its answer after which the peer counts as mad."""

_DIRECTORY, _READ, _WRITE, _RM = (
    int(MessageType.DIRECTORY),
    int(MessageType.READ),
    int(MessageType.WRITE),
    int(MessageType.RM),
)
_WATCH, _UNWATCH, _WATCH_EVENT = int(MessageType.WATCH), int(MessageType.UNWATCH), int(MessageType.WATCH_EVENT)
_TRANSACTION_START, _TRANSACTION_END = int(MessageType.TRANSACTION_START), int(MessageType.TRANSACTION_END)
_ERROR = int(MessageType.ERROR)

_MESSAGE_SIZE, _EVENT_SIZE, _WATCH_SIZE = 64, 64, 32  # of what the shipped driver keeps of each

_STATUS = {
    "ENOENT": EfiStatus.NOT_FOUND,
    "EACCES": EfiStatus.ACCESS_DENIED,
    "EAGAIN": EfiStatus.NOT_READY,
    "ETIMEDOUT": EfiStatus.TIMEOUT,
}


class XenStoreError(EfiError):
    """xenstored refused a request, or the conversation broke.

    `name` is the error's name in the protocol ("ENOENT"), `status` what the bus protocol's C form makes of it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_STATUS.get(name, EfiStatus.DEVICE_ERROR))
        self.name = name


class Watch:
    """One registered watch: its path, its token, and the events that have not been taken yet.

    Each event is the pair of buffers that it occupies; `held` are those of the watch itself.
    """

    __slots__ = ("events", "held", "path", "token")

    def __init__(self, path: str, token: str, held: list[int]) -> None:
        self.path = path
        self.token = token
        self.held = held
        self.events: list[tuple[int, int]] = []


class PoolBuffers:
    """The shipped driver's ways: pool for each path, value, message and body, and a wait for the ring's event.

    patience  pauses without an answer after which xenstored counts as dead

    The event is of type EVT_NOTIFY_WAIT: its notification looks whether the ring has something to say.
    """

    __slots__ = ("_event", "_ring", "_services", "patience")

    def __init__(self, services: BootServices, ring: SharedRing, patience: int = PATIENCE) -> None:
        self.patience = patience
        self._services = services
        self._ring = ring
        self._event = services.create_event(EVT_NOTIFY_WAIT, TPL_NOTIFY, self._look, 0)

    def hold(self, size_bytes: int) -> int:
        """Take a buffer. Raises EfiError(OUT_OF_RESOURCES)."""
        return self._services.allocate_pool(BOOT_SERVICES_DATA, size_bytes)

    def give(self, buffer: int) -> None:
        """Give a buffer back."""
        self._services.free_pool(buffer)

    def pause(self) -> None:
        """Wait until the ring has something to say, at most a second.

        Above TPL_APPLICATION nothing can be waited for. The shipped driver asks all the same, and turns in a loop: the
        stall stands for the time that this takes.
        """
        services = self._services
        timer = 0
        try:
            timer = services.create_event(EVT_TIMER, 0, None, 0)
            services.set_timer(timer, TimerDelay.RELATIVE, WAIT_100NS)
            services.wait_for_event((self._event, timer))
        except EfiError:
            services.stall(POLL_INTERVAL_US)
        if timer:
            services.close_event(timer)

    def close(self) -> None:
        """Close the event."""
        self._services.close_event(self._event)

    def _look(self, event: int, context: int) -> None:
        if self._ring.rsp_prod != self._ring.rsp_cons:
            self._services.signal_event(event)


class FixedBuffers:
    """One page, taken when the bus starts; messages are built and processed in place, and waits are short stalls."""

    __slots__ = ("_page", "_services")
    patience = PATIENCE

    def __init__(self, services: BootServices) -> None:
        self._services = services
        self._page = services.allocate_pages(0, BOOT_SERVICES_DATA, 1, 0)

    def hold(self, size_bytes: int) -> int:
        """The page; nothing is allocated. The longest message fits (a body is read in place, piece by piece)."""
        return self._page

    def give(self, buffer: int) -> None:
        """Nothing to give back."""

    def pause(self) -> None:
        """Let a little time pass."""
        self._services.stall(POLL_INTERVAL_US)

    def close(self) -> None:
        """Free the page; the bus stops."""
        self._services.free_pages(self._page, 1)


Buffers = PoolBuffers | FixedBuffers


class XenStoreClient:
    """The conversation of one Start of the bus. `in_use`: something was said, so that the ring is to be reset."""

    __slots__ = ("_buffers", "_hypercalls", "_next_id", "_port", "_ring", "_services", "_watches", "in_use")

    def __init__(
        self, services: BootServices, hypercalls: Hypercalls, ring: SharedRing, port: int, buffers: Buffers
    ) -> None:
        self._services = services
        self._hypercalls = hypercalls
        self._ring = ring
        self._port = port
        self._buffers = buffers
        self._next_id = 1
        self._watches: dict[str, Watch] = {}
        self.in_use = False

    # ---- requests -------------------------------------------------------------------------------------------------

    def read(self, path: str, transaction: int = 0) -> str:
        """The value of a node."""
        return self._request(_READ, path, b"", transaction).decode("utf-8", "replace")

    def directory(self, path: str) -> list[str]:
        """The names of a node's children."""
        return [name.decode("utf-8", "replace") for name in self._request(_DIRECTORY, path).split(b"\0") if name]

    def write(self, path: str, value: str, transaction: int = 0) -> None:
        """Set a node's value."""
        buffer = self._buffers.hold(len(value) + 1)
        try:
            self._request(_WRITE, path, value.encode(), transaction)
        finally:
            self._buffers.give(buffer)

    def remove(self, path: str) -> None:
        """Remove a node and what is below it."""
        self._request(_RM, path)

    def start_transaction(self) -> int:
        """Begin a transaction; its id."""
        answer = self._request(_TRANSACTION_START, "").rstrip(b"\0")
        if not answer.isdigit() or int(answer) >= 1 << 32:
            raise XenStoreError("EPROTO")
        return int(answer)

    def end_transaction(self, transaction: int, commit: bool) -> None:
        """End a transaction. Raises XenStoreError("EAGAIN") where it must be tried again."""
        self._converse(_TRANSACTION_END, b"T\0" if commit else b"F\0", transaction)

    def watch(self, path: str) -> Watch:
        """Register a watch; it fires once at once."""
        watch = Watch(path, f"watch-{self._next_id}", [])
        self._watches[watch.token] = watch
        try:
            watch.held.append(self._buffers.hold(_WATCH_SIZE))
            watch.held.append(self._buffers.hold(len(path) + 1))
            self._converse(_WATCH, _words(path, watch.token))
        except BaseException:
            self._forget(watch)
            raise
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Unregister a watch. It is forgotten here even where xenstored does not know it any more."""
        try:
            self._converse(_UNWATCH, _words(watch.path, watch.token))
        finally:
            self._forget(watch)

    def wait_for_watch(self, watch: Watch) -> bool:
        """Wait until the watch fires, and take the event. False where nothing came for `PATIENCE` pauses: an event for which
        there was no memory is lost.
        """
        for _ in range(PATIENCE):
            self._drain(watch)
            if watch.events:
                self._give(*watch.events.pop(0))
                return True
            self._buffers.pause()
        return False

    def _drain(self, watch: Watch) -> None:
        try:
            while not watch.events and self._ring.response_available():
                answer = self._receive()
                if answer is not None:
                    self._give(answer[2])  # the answer to a request that was given up
        except RingError:
            raise XenStoreError("EPROTO") from None

    def _forget(self, watch: Watch) -> None:
        self._watches.pop(watch.token, None)
        while watch.events:
            self._give(*watch.events.pop())
        while watch.held:
            self._give(watch.held.pop())

    def _give(self, *buffers: int) -> None:
        for buffer in buffers:
            self._buffers.give(buffer)

    # ---- reset ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Bring the ring back to the state in which somebody else can begin; `shared_ring` tells the two ways.

        The older way also where xenstored does not answer to the newer one.
        """
        ring = self._ring
        if ring.server_features & RECONNECTION_FEATURE:
            ring.connection = 1
            for _ in range(PATIENCE):
                self._notify()
                if ring.connection == 0:
                    return
        ring.clear(self._services.agent)

    def close(self) -> None:
        """Give back what watches still occupy that nobody has unregistered."""
        for watch in list(self._watches.values()):
            self._forget(watch)

    # ---- the conversation -----------------------------------------------------------------------------------------

    def _request(self, kind: int, path: str, rest: bytes = b"", transaction: int = 0) -> bytes:
        """A request about a path, which takes a buffer."""
        payload = b"%b\0%b" % (path.encode(), rest)
        if not path:
            return self._converse(kind, payload, transaction)
        buffer = self._buffers.hold(len(path) + 1)
        try:
            return self._converse(kind, payload, transaction)
        finally:
            self._buffers.give(buffer)

    def _converse(self, kind: int, payload: bytes, transaction: int = 0) -> bytes:
        """Send a request and receive its answer. Raises XenStoreError."""
        if len(payload) > PAYLOAD_MAX:
            raise XenStoreError("E2BIG")
        services = self._services
        old = services.raise_tpl(TPL_NOTIFY)  # the lock around the list of requests
        request_id = self._next_id
        self._next_id = request_id + 1 & 0xFFFFFFFF
        services.restore_tpl(old)
        self.in_use = True
        try:
            self._send(pack(kind, request_id, transaction, payload))
            for _ in range(MESSAGES_MAX):
                answer = self._receive()
                if answer is None:
                    continue  # a watch event
                answer_kind, answer_id, buffer, body = answer
                self._give(buffer)
                if answer_id != request_id:
                    continue  # the answer to a request that was given up
                if answer_kind == _ERROR:
                    raise XenStoreError(body.rstrip(b"\0").decode("utf-8", "replace") or "EIO")
                if answer_kind != kind:
                    raise XenStoreError("EPROTO")
                return body
            raise XenStoreError("EPROTO")
        except RingError:
            raise XenStoreError("EPROTO") from None

    def _send(self, data: bytes) -> None:
        for _ in range(self._buffers.patience):
            written = self._ring.write_request(data)
            self._notify()
            if written == len(data):
                return
            data = data[written:]
            if not written:
                self._buffers.pause()
        raise XenStoreError("ETIMEDOUT")

    def _notify(self) -> None:
        try:
            self._hypercalls.event_channel_send(self._port)
        except HypercallError:
            raise XenStoreError("EIO") from None

    def _receive(self) -> tuple[int, int, int, bytes] | None:
        """Take one message from the ring: (type, request id, buffer, body) of an answer, whose buffer is the caller's, or
        None for a watch event.
        """
        buffers = self._buffers
        kind, request_id, _transaction, length = unpack_header(self._take(HEADER_SIZE))
        if length > PAYLOAD_MAX:
            raise XenStoreError("EPROTO")
        held: list[int] = []
        try:
            held.append(buffers.hold(_MESSAGE_SIZE))
            held.append(buffers.hold(length + 1))
        except EfiError:
            self._give(*held)
            self._take(length)  # the conversation must stay in step
            raise
        try:
            body = self._take(length)
            if kind != _WATCH_EVENT:
                return kind, request_id, held.pop(), body
            token = body.split(b"\0")[1:2]
            watch = self._watches.get(token[0].decode("utf-8", "replace")) if token else None
            if watch is not None:
                watch.events.append((buffers.hold(_EVENT_SIZE), held.pop(0)))
            return None
        finally:
            self._give(*held)

    def _take(self, size_bytes: int) -> bytes:
        ring = self._ring
        data = ring.read_response(size_bytes)
        if len(data) == size_bytes:
            return data
        for _ in range(self._buffers.patience):
            self._buffers.pause()
            self._notify()  # room was made: xenstored may have more to say
            more = ring.read_response(size_bytes - len(data))
            data += more
            if len(data) == size_bytes:
                return data
        raise XenStoreError("ETIMEDOUT")


def _words(*words: str) -> bytes:
    """Words as xenstore takes them: each ends with a NUL."""
    return b"".join(word.encode() + b"\0" for word in words)
