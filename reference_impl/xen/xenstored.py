"""xenstored: the tree, its watches and transactions, and the conversation with the guest over the shared ring.

What happens to a request: the guest writes bytes into the request ring and sends the store's event channel
(`notified`). Bytes are collected until a message is whole, so a message may come in pieces and be longer than the ring.
Each whole message is one request: recorded (`Kind.XENSTORE`), made to fail if the scenario says so, done, answered;
then the platform takes one step, in which backends react.

Answers and watch events wait in `output` until the response ring has room. A message that would fit into an empty ring
goes there whole or not at all. Real xenstored splits such a message too; then what is left of a watch event could
follow a reset of the ring in the older way, which nobody at the guest's end could prevent.

The tree is one dictionary from absolute path to value: a transaction works on a copy of it, and a copy costs less than
a microsecond. A transaction conflicts (EAGAIN) where a node that it looked at or changed has been changed by somebody
else since it began.

Permissions, as far as needed: the guest reads everything; it writes in its own folder, but makes no folder of a device.
Not served: permissions (ENOSYS), what only the control domain may ask (EACCES).

Source: Xen, docs/misc/xenstore.txt and tools/xenstored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reference_impl.trace import Kind, Trace
from reference_impl.xen.shared_ring import RECONNECT, RECONNECTION_FEATURE, RING_SIZE, RingError, SharedRing
from reference_impl.xen.wire import (
    ABSOLUTE_PATH_MAX,
    HEADER_SIZE,
    PAYLOAD_MAX,
    RELATIVE_PATH_MAX,
    TYPE_NAMES,
    MessageType,
    pack,
    unpack_header,
)

if TYPE_CHECKING:
    from reference_impl.xen.platform import XenPlatform

HOME = "/local/domain/1"
BACKENDS = "/local/domain/0/backend"
OPERATING_SYSTEM = "os"  # the agent that no failure is armed against

WATCHES_MAX = 128
TRANSACTIONS_MAX = 10
SHOWN_SIZE = 64  # bytes of a value or answer that a record shows

_HOME_PREFIX = HOME + "/"
_DEVICES_PREFIX = HOME + "/device/"
_DEVICE_DEPTH = 6  # slashes in the path of a device's folder
_WRITABLE = ("data", "control", "attr", "error", "drivers", "messages")
_SPECIAL_WATCHES = ("@introduceDomain", "@releaseDomain")
_VALID_PATH = re.compile(r"(?:/[A-Za-z0-9_@-]+)+|/").fullmatch

_XENSTORE, _XENBUS_STATE = int(Kind.XENSTORE), int(Kind.XENBUS_STATE)
_DIRECTORY, _READ, _WATCH, _WRITE = (
    int(MessageType.DIRECTORY),
    int(MessageType.READ),
    int(MessageType.WATCH),
    int(MessageType.WRITE),
)
_START, _END = int(MessageType.TRANSACTION_START), int(MessageType.TRANSACTION_END)
_EVENT, _ERROR = int(MessageType.WATCH_EVENT), int(MessageType.ERROR)
_GUARDED = frozenset({_READ, _WRITE, _DIRECTORY, _WATCH, _START, _END})
_CONNECTING = (b"3", b"4")  # Initialised, Connected
_CONTROL_DOMAIN_ONLY = frozenset(
    {
        int(MessageType.CONTROL),
        int(MessageType.INTRODUCE),
        int(MessageType.RELEASE),
        int(MessageType.IS_DOMAIN_INTRODUCED),
        int(MessageType.RESUME),
        int(MessageType.SET_TARGET),
    }
)
_OK = b"OK\0"


class XenstoreError(Exception):
    """A request is refused. `name` is the error that the answer carries: "ENOENT"."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Watch:
    """A registered watch: `path` absolute, `relative` if the guest gave it so, `owner` who registered it."""

    __slots__ = ("owner", "path", "prefix", "relative", "token")

    def __init__(self, path: str, relative: bool, token: bytes, owner: str) -> None:
        self.path = path
        self.prefix = path if path == "/" else path + "/"
        self.relative = relative
        self.token = token
        self.owner = owner


class Transaction:
    """An open transaction: its copy of the tree, what it looked at, and what it will do at the end."""

    __slots__ = ("accessed", "changes", "owner", "start", "tree")

    def __init__(self, tree: dict[str, bytes], start: int, owner: str) -> None:
        self.tree = tree
        self.start = start
        self.owner = owner
        self.accessed: dict[str, None] = {}
        self.changes: list[tuple[str, bytes | None]] = []  # value None: remove


class Xenstored:
    """The daemon, with the one connection to the guest.

    tree          absolute path → value, in the order in which nodes were made
    watches       of the guest, by absolute path and token
    transactions  of the guest, by id
    observed      paths at whose change the platform itself looks → who is told agent and value (None: removed)
    pending       bytes of a request that is not whole yet
    output        messages that wait for room in the response ring
    ignored       the guest has broken the protocol; nothing is read from it until it reconnects
    manner        "" for an honest one; "silent": it looks at nothing; "twice": it answers twice; "wrong": to a request
                  that nobody made
    """

    __slots__ = (
        "_changed",
        "_generation",
        "_next_transaction",
        "_platform",
        "ignored",
        "manner",
        "observed",
        "output",
        "path",
        "pending",
        "port",
        "ring",
        "trace",
        "transactions",
        "tree",
        "watches",
    )

    def __init__(self, platform: XenPlatform, ring: SharedRing, port: int) -> None:
        self._platform = platform
        self.trace: Trace = platform.trace
        self.ring = ring
        self.port = port
        self.path = "xenstored"
        self.tree: dict[str, bytes] = dict(_FIRST_TREE)
        self.watches: dict[tuple[str, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.observed: dict[str, Callable[[str, bytes | None], None]] = {}
        self.pending = b""
        self.output: list[bytes] = []
        self.ignored = False
        self.manner = ""
        self._next_transaction = 1
        self._generation = 0
        self._changed: dict[str, int] = {}

    def behave(self, manner: str) -> None:
        """From now on it is "silent", or answers "twice" or "wrong".

        Where it is silent, nobody hears any more what front ends say: their states are unknown, and recorded so.
        """
        self.manner = manner
        if manner == "silent":
            for device in self._platform.devices:
                self.trace.add(_XENBUS_STATE, "frontend", device.path, (device.frontend_state, 0))

    # ---- conversation ---------------------------------------------------------------------------------------------

    def notified(self, agent: str) -> None:
        """`agent` has sent the store's event channel: it asks for a new connection, sent requests, or made room."""
        if self.manner == "silent":
            return
        ring = self.ring
        if ring.server_features & RECONNECTION_FEATURE and ring.connection == RECONNECT:
            self._reconnect(agent)
            return
        if self.ignored:
            return
        try:
            data = ring.read_requests()
        except RingError:
            self._ignore(agent, "request ring", "EIO")
            return
        if data:
            if not ring.user:
                ring.take_into_use(agent)
            self._requests(agent, self.pending + data)
        self.flush(agent)

    def flush(self, agent: str) -> None:
        """Move messages from `output` into the response ring, as far as there is room."""
        output = self.output
        if not output or self.ignored:
            return
        ring = self.ring
        done = 0
        try:
            space = ring.response_space()
            for message in output:  # nearly always one or two
                size = len(message)
                if size > space and (size <= RING_SIZE or not space):
                    break
                written = ring.write_response(message)
                space -= written
                if written < size:
                    output[done] = message[written:]
                    break
                done += 1
        except RingError:
            self._ignore(agent, "response ring", "EIO")
            return
        del output[:done]
        self._platform.event_channels.raise_event(self.port, self)

    def drop_connection(self) -> None:
        """Forget this half of the conversation: what was half read or not yet sent, watches, transactions."""
        self.pending = b""
        self.output.clear()
        self.watches.clear()
        self.transactions.clear()
        self.ignored = False

    def _reconnect(self, agent: str) -> None:
        self.drop_connection()
        self.ring.reconnect(agent)
        self._platform.event_channels.raise_event(self.port, self)

    def _ignore(self, agent: str, what: str, error: str) -> None:
        """The guest has broken the protocol. Recorded as XENSTORE."""
        self.ignored = True
        self.trace.add(_XENSTORE, agent, "connection ignored", (what,), error)

    def _requests(self, agent: str, data: bytes) -> None:
        """Answer every whole request in `data` and keep the rest."""
        offset, size = 0, len(data)
        while size - offset >= HEADER_SIZE:
            message_type, request_id, transaction_id, length = unpack_header(data, offset)
            if length > PAYLOAD_MAX:
                self._ignore(agent, "payload", "E2BIG")
                self.pending = b""
                return
            end = offset + HEADER_SIZE + length
            if end > size:
                break
            payload = data[offset + HEADER_SIZE : end]
            offset = end
            self._answer(agent, message_type, request_id, transaction_id, payload)
        self.pending = data[offset:]

    def _answer(self, agent: str, message_type: int, request_id: int, transaction_id: int, payload: bytes) -> None:
        """Do one request and queue its answer. The one place where a refusal becomes an answer and a record."""
        name = TYPE_NAMES.get(message_type) or f"type {message_type}"
        path, _, rest = payload.partition(b"\0")
        text = path.decode("latin-1")
        shown: tuple[Any, ...] = (text, rest[:SHOWN_SIZE]) if rest else (text,)
        trace = self.trace
        records = trace.records
        index = len(records)
        tpl, depth, phase = trace.tpl, trace.depth, trace.phase
        records.append((_XENSTORE, agent, tpl, depth, phase, name, shown, None, None))
        trace.depth = depth + 1
        platform = self._platform
        if platform.vanishing:
            platform.count_request()
        if self.manner == "wrong":
            request_id = request_id + 1 & 0xFFFFFFFF
        status = "OK"
        try:
            if platform.failures.armed and agent != OPERATING_SYSTEM:
                self._fail_if_armed(agent, message_type, transaction_id, text, rest)
            if transaction_id and transaction_id not in self.transactions:
                raise XenstoreError("ENOENT")
            serve = _SERVED.get(message_type)
            if serve is None:
                raise XenstoreError("EACCES" if message_type in _CONTROL_DOMAIN_ONLY else "ENOSYS")
            answer = serve(self, agent, transaction_id, payload)
            if len(answer) > PAYLOAD_MAX:
                raise XenstoreError("E2BIG")
            self.output.append(pack(message_type, request_id, transaction_id, answer))
        except XenstoreError as error:
            status = error.name
            answer = status.encode() + b"\0"
            self.output.append(pack(_ERROR, request_id, transaction_id, answer))
        if self.manner == "twice":
            self.output.append(self.output[-1])
        if message_type == _WATCH and status == "OK":
            # A watch fires once at its registration: docs/misc/xenstore.txt. Its answer comes first.
            self.output.append(pack(_EVENT, 0, 0, payload))
        if platform.busy:
            platform.let_backends_react()
        trace.depth = depth
        records[index] = (_XENSTORE, agent, tpl, depth, phase, name, shown, status, answer[:SHOWN_SIZE])

    def _fail_if_armed(self, agent: str, message_type: int, transaction_id: int, path: str, rest: bytes) -> None:
        """Raise the armed refusal, unless the request is cleanup: of a device that is closing, or of a transaction.

        A refused end of a transaction ends it all the same, as with real xenstored.
        """
        platform = self._platform
        if not platform.cleanup_may_fail:
            of_any_device = message_type in (_START, _END)
            if message_type in _GUARDED and platform.device_is_closing("" if of_any_device else path):
                return
            if message_type == _WRITE and path.endswith("/state") and rest not in _CONNECTING:
                return
            if message_type == _END and path == "F":
                return
        error = platform.failures.fires("XS_" + TYPE_NAMES.get(message_type, ""), agent)
        if error is not None:
            if message_type == _END:
                self.transactions.pop(transaction_id, None)
            raise XenstoreError(error)

    # ---- requests -------------------------------------------------------------------------------------------------

    def _directory(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """The names of a node's children, each ended by NUL. EINVAL, ENOENT."""
        path = absolute(_one_argument(payload), self.tree)
        tree = self._view(transaction_id, path)
        if path not in tree:
            raise XenstoreError("ENOENT")
        prefix = path if path == "/" else path + "/"
        start = len(prefix)
        names = [key[start:] for key in tree if key.startswith(prefix)]
        return "".join([name + "\0" for name in names if name and "/" not in name]).encode()

    def _read(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """The value of a node. EINVAL, ENOENT."""
        path = absolute(_one_argument(payload), self.tree)
        value = self._view(transaction_id, path).get(path)
        if value is None:
            raise XenstoreError("ENOENT")
        return value

    def _write(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Set the value of a node, which is made where it is missing. EINVAL, EACCES."""
        text, separator, value = payload.partition(b"\0")
        if not separator:
            raise XenstoreError("EINVAL")
        path = absolute(text, self.tree)
        self._change(agent, transaction_id, path, value)
        return _OK

    def _mkdir(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Make an empty node; one that exists stays as it is. EINVAL, EACCES."""
        path = absolute(_one_argument(payload), self.tree)
        if path not in self._view(transaction_id, path):
            self._change(agent, transaction_id, path, b"")
        return _OK

    def _rm(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Remove a node and what is below it. EINVAL, EACCES; ENOENT where its parent is missing too."""
        path = absolute(_one_argument(payload), self.tree)
        if path == "/":
            raise XenstoreError("EINVAL")
        tree = self._view(transaction_id, path)
        if path in tree or not may_write(tree, path):
            self._change(agent, transaction_id, path, None)
        elif _parent(path) not in tree:
            raise XenstoreError("ENOENT")
        return _OK

    def _watch(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Register a watch. EINVAL, EEXIST, E2BIG."""
        text, token = _two_arguments(payload)
        special = text.decode("latin-1") in _SPECIAL_WATCHES
        path = text.decode() if special else absolute(text)
        if (path, token) in self.watches:
            raise XenstoreError("EEXIST")
        if len(self.watches) >= WATCHES_MAX:
            raise XenstoreError("E2BIG")
        self.watches[path, token] = Watch(path, not special and text[:1] != b"/", token, agent)
        return _OK

    def _unwatch(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Take a watch back. EINVAL, ENOENT."""
        text, token = _two_arguments(payload)
        path = text.decode("latin-1") if text[:1] == b"@" else absolute(text)
        if self.watches.pop((path, token), None) is None:
            raise XenstoreError("ENOENT")
        return _OK

    def _reset_watches(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Take all watches back and abort all transactions."""
        self.watches.clear()
        self.transactions.clear()
        return _OK

    def _transaction_start(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """The id of a new transaction, in decimal. EBUSY inside of another, ENOSPC."""
        if transaction_id:
            raise XenstoreError("EBUSY")
        if len(self.transactions) >= TRANSACTIONS_MAX:
            raise XenstoreError("ENOSPC")
        started = self._next_transaction
        self._next_transaction += 1
        self.transactions[started] = Transaction(dict(self.tree), self._generation, agent)
        return b"%d\0" % started

    def _transaction_end(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """Commit ("T") or abort ("F") the transaction. EINVAL, ENOENT; EAGAIN where it conflicts, and it is over."""
        if payload not in (b"T\0", b"F\0"):
            raise XenstoreError("EINVAL")
        transaction = self.transactions.pop(transaction_id, None)
        if transaction is None:
            raise XenstoreError("ENOENT")
        if payload == b"T\0":
            if self._generation != transaction.start:
                changed = self._changed
                if any(changed.get(path, 0) > transaction.start for path in transaction.accessed):
                    raise XenstoreError("EAGAIN")
            for path, value in transaction.changes:
                self.change(agent, path, value)
        return _OK

    def _get_domain_path(self, agent: str, transaction_id: int, payload: bytes) -> bytes:
        """The folder of a domain, given by its number in decimal. EINVAL."""
        number = _one_argument(payload)
        if not number.isdigit() or len(number) > 5:
            raise XenstoreError("EINVAL")
        return b"/local/domain/%d\0" % int(number)

    # ---- tree -----------------------------------------------------------------------------------------------------

    def change(self, agent: str, path: str, value: bytes | None) -> None:
        """Set a node, or remove it and what is below it (None), fire the watches, tell who observes the path."""
        tree = self.tree
        self._generation += 1
        touched = _apply(tree, path, value)
        generation = self._generation
        for each in touched:
            self._changed[each] = generation
        if self.watches:
            self._fire(path, touched if value is None else (path,))
        observed = self.observed
        if value is None:
            for each in touched:
                if each in observed and each not in tree:
                    observed[each](agent, None)
        elif path in observed:
            observed[path](agent, value)

    def _change(self, agent: str, transaction_id: int, path: str, value: bytes | None) -> None:
        """A change that the guest asks for, now or at the end of its transaction. EACCES."""
        if not transaction_id:
            if not may_write(self.tree, path):
                raise XenstoreError("EACCES")
            self.change(agent, path, value)
            return
        tree = self._view(transaction_id, path)
        if not may_write(tree, path):
            raise XenstoreError("EACCES")
        transaction = self.transactions[transaction_id]
        for each in _apply(tree, path, value):
            transaction.accessed[each] = None
        transaction.changes.append((path, value))

    def _view(self, transaction_id: int, path: str) -> dict[str, bytes]:
        """The tree that a request sees. A transaction remembers that it looked at `path`."""
        if not transaction_id:
            return self.tree
        transaction = self.transactions[transaction_id]
        transaction.accessed[path] = None
        return transaction.tree

    def _fire(self, path: str, touched: tuple[str, ...] | list[str]) -> None:
        """Queue the events for a change of `path`; a watch below a removed node names its own path."""
        for watch in self.watches.values():
            watched = watch.path
            if path == watched or path.startswith(watch.prefix):
                seen = path
            elif len(touched) > 1 and watched in touched and watched.startswith(path):
                seen = watched
            else:
                continue
            if watch.relative:
                seen = seen[len(_HOME_PREFIX) :]
            self.output.append(pack(_EVENT, 0, 0, seen.encode() + b"\0" + watch.token + b"\0"))


_SERVED: dict[int, Callable[[Xenstored, str, int, bytes], bytes]] = {
    _DIRECTORY: Xenstored._directory,
    _READ: Xenstored._read,
    _WATCH: Xenstored._watch,
    int(MessageType.UNWATCH): Xenstored._unwatch,
    _START: Xenstored._transaction_start,
    _END: Xenstored._transaction_end,
    int(MessageType.GET_DOMAIN_PATH): Xenstored._get_domain_path,
    _WRITE: Xenstored._write,
    int(MessageType.MKDIR): Xenstored._mkdir,
    int(MessageType.RM): Xenstored._rm,
    int(MessageType.RESET_WATCHES): Xenstored._reset_watches,
}

_FIRST_TREE: dict[str, bytes] = {
    "/": b"",
    "/local": b"",
    "/local/domain": b"",
    "/local/domain/0": b"",
    BACKENDS: b"",
    HOME: b"",
    HOME + "/name": b"guest",
    HOME + "/domid": b"1",
    HOME + "/device": b"",
    HOME + "/control": b"",
    HOME + "/data": b"",
}


def absolute(text: bytes, tree: dict[str, bytes] | None = None) -> str:
    """The absolute path that the guest means by `text`. Raises XenstoreError(EINVAL) for what is none.

    A path that is in `tree` has been checked before.
    """
    if text[:1] == b"/":
        path = text.decode("latin-1")
        size_max = ABSOLUTE_PATH_MAX
    else:
        path = _HOME_PREFIX + text.decode("latin-1")
        size_max = RELATIVE_PATH_MAX
    if tree is not None and path in tree:
        return path
    if len(text) > size_max or _VALID_PATH(path) is None:
        raise XenstoreError("EINVAL")
    return path


def may_write(tree: dict[str, bytes], path: str) -> bool:
    """Whether the guest may change `path`: in its folder, and in `device/` only in folders of devices that exist."""
    if path.startswith(_DEVICES_PREFIX):
        if path in tree:
            return path.count("/") >= _DEVICE_DEPTH
        end = -1
        for _ in range(_DEVICE_DEPTH + 1):
            end = path.find("/", end + 1)
            if end < 0:
                return False
        return path[:end] in tree
    return path.startswith(_HOME_PREFIX) and path.split("/", 5)[4] in _WRITABLE


def _apply(tree: dict[str, bytes], path: str, value: bytes | None) -> list[str]:
    """Change `tree`; gives the paths that are touched: the node, parents that were made or whose children changed,
    and everything that was removed.
    """
    if value is None:
        prefix = path + "/"
        touched = [key for key in tree if key == path or key.startswith(prefix)]
        for key in touched:
            del tree[key]
        touched.append(_parent(path))
        return touched
    if path in tree:
        tree[path] = value
        return [path]
    parent = _parent(path)
    touched = [path, parent]
    missing = []
    while parent not in tree:
        missing.append(parent)
        parent = _parent(parent)
        touched.append(parent)
    for each in reversed(missing):
        tree[each] = b""
    tree[path] = value
    return touched


def _parent(path: str) -> str:
    return path[: path.rfind("/")] or "/"


def _one_argument(payload: bytes) -> bytes:
    """The one argument, which NUL ends."""
    if payload.find(b"\0") != len(payload) - 1 or not payload:
        raise XenstoreError("EINVAL")
    return payload[:-1]


def _two_arguments(payload: bytes) -> tuple[bytes, bytes]:
    """Two arguments, which NUL ends."""
    parts = payload.split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise XenstoreError("EINVAL")
    return parts[0], parts[1]
