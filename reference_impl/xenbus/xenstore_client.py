"""The driver's side of the xenstore conversation: requests, answers and watch events over the shared ring.

One client belongs to one connection. It has one request under way at a time, as the bus driver has. What arrives between
a request and its answer are watch events, which are noted on their watch, and answers to requests that were given up.

Where the memory for paths and messages comes from is the teardown design's choice:

* `PoolBuffers` takes and frees pool for every path, message and body, at the places where the shipped driver does.
* `FixedBuffers` works in one page that the bus allocated when it started; no memory service is called afterwards.

The peer is not trusted: whatever bytes it writes, a request ends with an answer or an `XenStoreError`.
Sources: xen/include/public/io/xs_wire.h for the format; docs/misc/xenstore-ring.txt for the reset.
"""

from __future__ import annotations

from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, TPL_NOTIFY
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.hypervisor import HypercallError, Hypercalls
from reference_impl.xen.shared_ring import RECONNECTION_FEATURE, RingError, SharedRing
from reference_impl.xen.wire import HEADER_SIZE, PAYLOAD_MAX, MessageType, pack, unpack_header

POLL_INTERVAL_US = 100
PATIENCE = 200
"""Polls without any news after which a peer counts as dead."""

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


_STATUS = {"ENOENT": EfiStatus.NOT_FOUND, "EACCES": EfiStatus.ACCESS_DENIED, "EAGAIN": EfiStatus.NOT_READY}


class XenStoreError(EfiError):
    """xenstored refused a request, or the conversation broke.

    `name` is the error's name in the protocol ("ENOENT"), `status` what the bus protocol's C form makes of it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_STATUS.get(name, EfiStatus.DEVICE_ERROR))
        self.name = name


class Watch:
    """One registered watch: its path, its token, and how many of its events have not been taken yet."""

    __slots__ = ("path", "pending", "token")

    def __init__(self, path: str, token: str) -> None:
        self.path = path
        self.token = token
        self.pending = 0


class PoolBuffers:
    """Pool for each path, message and body, as the shipped driver has it."""

    __slots__ = ("_services",)

    def __init__(self, services: BootServices) -> None:
        self._services = services

    def hold(self, size_bytes: int) -> int:
        """Take a buffer. Raises EfiError(OUT_OF_RESOURCES)."""
        return self._services.allocate_pool(BOOT_SERVICES_DATA, size_bytes)

    def give(self, buffer: int) -> None:
        """Give a buffer back."""
        self._services.free_pool(buffer)

    def close(self) -> None:
        """Nothing is kept between requests."""


class FixedBuffers:
    """One page, taken when the bus starts; messages are built and processed in place."""

    __slots__ = ("_page", "_services")

    def __init__(self, services: BootServices) -> None:
        self._services = services
        self._page = services.allocate_pages(0, BOOT_SERVICES_DATA, 1, 0)

    def hold(self, size_bytes: int) -> int:
        """The page; nothing is allocated. The longest message fits (a body is read in place, piece by piece)."""
        return self._page

    def give(self, buffer: int) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Free the page; the bus stops."""
        self._services.free_pages(self._page, 1)


Buffers = PoolBuffers | FixedBuffers


class XenStoreClient:
    """The conversation of one connection generation."""

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
        self._request(_WRITE, path, value.encode(), transaction)

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
        self._request(_TRANSACTION_END, "T" if commit else "F", b"", transaction)

    def watch(self, path: str) -> Watch:
        """Register a watch; it fires once at once."""
        watch = Watch(path, f"watch-{self._next_id}")
        self._watches[watch.token] = watch
        try:
            self._request(_WATCH, path, watch.token.encode() + b"\0")
        except BaseException:
            del self._watches[watch.token]
            raise
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Unregister a watch. It is forgotten here even where xenstored does not know it any more."""
        self._watches.pop(watch.token, None)
        self._request(_UNWATCH, watch.path, watch.token.encode() + b"\0")

    def wait_for_watch(self, watch: Watch) -> bool:
        """Wait until the watch fires, and take the event. False where nothing came for `PATIENCE` polls."""
        for _ in range(PATIENCE):
            self._drain(watch)
            if watch.pending:
                watch.pending -= 1
                return True
            self._services.stall(POLL_INTERVAL_US)
        return False

    def _drain(self, watch: Watch) -> None:
        try:
            while not watch.pending and self._ring.response_available():
                self._receive()
        except RingError:
            raise XenStoreError("EPROTO") from None

    # ---- reset ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Bring the ring back to the state in which somebody else can begin; `shared_ring` tells the two ways."""
        ring = self._ring
        self.in_use = False
        self._watches.clear()
        if not ring.server_features & RECONNECTION_FEATURE:
            ring.clear(self._services.agent)
            return
        ring.connection = 1
        for _ in range(PATIENCE):
            self._notify()
            if ring.connection == 0:
                return

    # ---- the conversation -----------------------------------------------------------------------------------------

    def _request(self, kind: int, path: str, rest: bytes = b"", transaction: int = 0) -> bytes:
        services, buffers = self._services, self._buffers
        payload = b"%b\0%b" % (path.encode(), rest)
        if len(payload) > PAYLOAD_MAX:
            raise XenStoreError("E2BIG")
        path_buffer = buffers.hold(len(payload))
        try:
            old = services.raise_tpl(TPL_NOTIFY)  # the lock around the list of requests
            request_id = self._next_id
            self._next_id = request_id + 1 & 0xFFFFFFFF
            services.restore_tpl(old)
            self.in_use = True
            self._send(pack(kind, request_id, transaction, payload))
            for _ in range(MESSAGES_MAX):
                answer = self._receive()
                if answer is None:
                    continue  # a watch event
                answer_kind, answer_id, body = answer
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
        finally:
            buffers.give(path_buffer)

    def _send(self, data: bytes) -> None:
        for _ in range(PATIENCE):
            written = self._ring.write_request(data)
            self._notify()
            if written == len(data):
                return
            data = data[written:]
            if not written:
                self._services.stall(POLL_INTERVAL_US)
        raise XenStoreError("ETIMEDOUT")

    def _notify(self) -> None:
        try:
            self._hypercalls.event_channel_send(self._port)
        except HypercallError:
            raise XenStoreError("EIO") from None

    def _receive(self) -> tuple[int, int, bytes] | None:
        """Take one message from the ring: (type, request id, body) of an answer, or None for a watch event."""
        buffers = self._buffers
        header = self._take(HEADER_SIZE)
        kind, request_id, _transaction, length = unpack_header(header)
        if length > PAYLOAD_MAX:
            raise XenStoreError("EPROTO")
        try:
            message_buffer = buffers.hold(HEADER_SIZE + 32)
        except EfiError:
            self._take(length)  # the conversation must stay in step
            raise
        try:
            try:
                body_buffer = buffers.hold(length + 1)
            except EfiError:
                self._take(length)
                raise
            try:
                body = self._take(length)
                if kind != _WATCH_EVENT:
                    return kind, request_id, body
                token = body.split(b"\0")[1:2]
                watch = self._watches.get(token[0].decode("utf-8", "replace")) if token else None
                if watch is not None:
                    watch.pending += 1
                return None
            finally:
                buffers.give(body_buffer)
        finally:
            buffers.give(message_buffer)

    def _take(self, size_bytes: int) -> bytes:
        ring = self._ring
        data = ring.read_response(size_bytes)
        if len(data) == size_bytes:
            return data
        for _ in range(PATIENCE):
            self._services.stall(POLL_INTERVAL_US)
            self._notify()  # room was made: xenstored may have more to say
            more = ring.read_response(size_bytes - len(data))
            data += more
            if len(data) == size_bytes:
                return data
        raise XenStoreError("ETIMEDOUT")
