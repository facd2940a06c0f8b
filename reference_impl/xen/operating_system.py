"""The operating system that takes over: it connects to xenstore, the grant table and every backend from scratch.

    take_over(platform)

It succeeds exactly if the firmware has let go. Each step leaves one `Kind.TAKE_OVER` record with status "OK", or one
for each thing in the way, with the reason in words and, as value, the agent of the firmware that is responsible:

    store           the ring was reset, and its indices are those of a new connection; where xenstored offers
                    reconnection, no watch and no transaction of the firmware is left; the store answers
    grant-table     no frame of the firmware's table is in the physmap; no backend still maps a page of the firmware
    event-channel   no backend is still bound to a port of the firmware
    device/vbd/0 …  the backend waits for a front end (or gets there after Closed), connects, and serves one request;
                    a device that the control domain is taking away is none of its business

Where reconnection is not offered, the firmware had no means to drop its watches, so they are no fault: the operating
system sends RESET_WATCHES first and ignores watch events.

One fault must not hide the next: after finding one, the operating system forces what a good firmware would have done
and goes on. What it does itself leaves no records; it is not under test. Driver code that still runs does.

Its facts about the firmware come from the page, the physmap and the store. Only the name of who is responsible, and
which peers are broken, come from the platform's own knowledge. What a broken backend holds, and whether it connects, is
not asked about. A xenstored that misbehaved answers properly from now on; where it did not answer, or lied, no firmware
could make anybody let go, and the grant table alone is left to ask about.
"""

from __future__ import annotations

from collections.abc import Iterator

from reference_impl.trace import Kind
from reference_impl.xen.backend import (
    DEVICE_TYPES,
    OPERATION_READ,
    REQUEST,
    RESPONSE,
    RESPONSE_OFFSET,
    STATUS_OK,
    Backend,
    XenbusState,
)
from reference_impl.xen.grant_table import ENTRIES_PER_FRAME, RESERVED
from reference_impl.xen.hypervisor import GRANT_TABLE, STORE_EVTCHN
from reference_impl.xen.platform import PEER_DOMAIN, XenPlatform
from reference_impl.xen.shared_ring import CONNECTED, RECONNECT, RECONNECTION_FEATURE, RING_SIZE, RingError
from reference_impl.xen.wire import HEADER_SIZE, PAYLOAD_MAX, MessageType, pack, unpack_header
from reference_impl.xen.xenstored import OPERATING_SYSTEM

Answer = tuple[int, bytes]
Problem = tuple[tuple[object, ...], str, str]  # arguments, reason, agent responsible

SETTLE_STEPS_MAX = 1000  # far more than the slowest backend needs

_DIRECTORY, _READ, _WRITE = int(MessageType.DIRECTORY), int(MessageType.READ), int(MessageType.WRITE)
_RESET_WATCHES, _EVENT, _ERROR = int(MessageType.RESET_WATCHES), int(MessageType.WATCH_EVENT), int(MessageType.ERROR)
_FIRST_REQUEST_ID = 0x4F530000  # no request id of a firmware that counts from zero
_TABLE_GFN = 0x200000  # above everything that the firmware uses
_FIRST_PAGE_GFN = 0x200001
_RING_NODES = {device_type.name: device_type.ring_nodes for device_type in DEVICE_TYPES.values()}
_CONNECTED_STATE, _CLOSED_STATE, _INIT_WAIT_STATE = b"4", b"6", b"2"
_TAKE_OVER = int(Kind.TAKE_OVER)
_DRIVER_CODE = (int(Kind.ENTRY), int(Kind.SERVICE))


def take_over(platform: XenPlatform) -> None:
    """Take over the machine as a kernel would. What is in the way is recorded, and never raised."""
    _OperatingSystem(platform).run()


class _NotReachedError(Exception):
    """The store does not answer as it should. The argument is the reason in words."""


class _OperatingSystem:
    """One take-over.

    mark     how many records of the trace stay; later ones are about the operating system's own doing
    store_was_broken
             xenstored was of no use to the firmware
    unread   bytes from the response ring that are no whole message yet
    """

    __slots__ = (
        "_mark",
        "_next_page",
        "_next_reference",
        "_next_request_id",
        "_platform",
        "_store_was_broken",
        "_unread",
    )

    def __init__(self, platform: XenPlatform) -> None:
        self._platform = platform
        self._mark = len(platform.trace.records)
        self._store_was_broken = False
        self._unread = b""
        self._next_request_id = _FIRST_REQUEST_ID
        self._next_page = _FIRST_PAGE_GFN
        self._next_reference = RESERVED

    def run(self) -> None:
        """All steps. What backends hold is looked at first: while the store is in use, time passes for them."""
        store = self._platform.xenstored
        self._store_was_broken = store.manner in ("silent", "wrong")
        store.manner = ""
        self._platform.vanishing.clear()
        grant_problems = self._grant_problems()
        channel_problems = self._channel_problems()
        store_problems = self._store_problems()
        store_problem = self._connect_store(forced=bool(store_problems))
        if store_problem is not None and not store_problems:
            store_problems.append(store_problem)
        self._record("store", [] if self._store_was_broken else store_problems)
        self._take_grant_table()
        self._record("grant-table", grant_problems)
        self._record("event-channel", channel_problems)
        reason = "the store cannot be reached"
        devices = iter(self._platform.devices)
        if store_problem is None:
            try:
                self._devices(devices)
            except (_NotReachedError, RingError) as error:
                reason = str(error)
        for device in devices:
            self._record(device.path, [((), reason, "")])
        self._forget_own_records()

    def _forget_own_records(self) -> None:
        """Take out of the trace what has come since the last step, but for what driver code still did meanwhile."""
        records = self._platform.trace.records
        records[self._mark :] = [record for record in records[self._mark :] if record[0] in _DRIVER_CODE]

    def _record(self, name: str, problems: list[Problem]) -> None:
        """Leave the record of one step, and only that."""
        trace = self._platform.trace
        self._forget_own_records()
        if not problems:
            trace.add(_TAKE_OVER, OPERATING_SYSTEM, name, (), "OK", "")
        for arguments, reason, agent in problems:
            trace.add(_TAKE_OVER, OPERATING_SYSTEM, name, arguments, reason, agent)
        self._mark = len(trace.records)

    # ---- store ----------------------------------------------------------------------------------------------------

    def _store_problems(self) -> list[Problem]:
        """What the firmware has left in the ring and in xenstored."""
        platform = self._platform
        ring, store = platform.ring, platform.xenstored
        problems: list[Problem] = []
        reconnection = ring.server_features & RECONNECTION_FEATURE
        if ring.user:
            problems.append(((ring.generation,), "the ring was not reset", ring.user))
        else:
            arrived = 0 if reconnection else RING_SIZE  # watch events may come after a reset in the older way
            indices = (ring.req_cons, ring.req_prod, ring.rsp_cons, ring.rsp_prod)
            if any(indices[:3]) or indices[3] > arrived:
                problems.append((indices, "the ring's indices are not those of a new connection", ring.reset_by))
        if reconnection:
            problems += [((watch.path,), "a watch is left", watch.owner) for watch in store.watches.values()]
            problems += [((), "a transaction is left", each.owner) for each in store.transactions.values()]
        return problems

    def _connect_store(self, forced: bool) -> Problem | None:
        """Begin a conversation with xenstored. Gives what is in the way."""
        platform = self._platform
        ring, store = platform.ring, platform.xenstored
        port = platform.hypervisor.parameters[STORE_EVTCHN]
        culprit = ring.reset_by
        channel = platform.event_channels.channels.get(port)
        if channel is None or channel.peer is not store:
            return (port,), "the store's event channel was closed", ""
        if forced:
            store.drop_connection()
            ring.req_cons = ring.req_prod = ring.rsp_cons = ring.rsp_prod = 0
        if ring.server_features & RECONNECTION_FEATURE:
            ring.connection = RECONNECT
            platform.event_channels.send(port, OPERATING_SYSTEM)
            assert ring.connection == CONNECTED
        try:
            self._exchange([(_RESET_WATCHES, b"\0")])
        except (_NotReachedError, RingError) as error:
            return (), str(error), culprit
        return None

    def _exchange(self, requests: list[tuple[int, bytes]]) -> list[Answer]:
        """Send requests, type and payload each, and give the answers, type and payload each, in the same order.

        Raises _NotReachedError where an answer does not come or is somebody else's, RingError for impossible indices.
        """
        if not requests:
            return []
        platform = self._platform
        ring, send = platform.ring, platform.event_channels.send
        port = platform.hypervisor.parameters[STORE_EVTCHN]
        expected = self._next_request_id
        self._next_request_id += len(requests)
        data = b"".join([pack(kind, expected + at, 0, payload) for at, (kind, payload) in enumerate(requests)])
        answers: list[Answer] = []
        while True:
            data = data[ring.write_request(data) :]
            send(port, OPERATING_SYSTEM)
            received = ring.read_response(RING_SIZE)
            self._take_answers(received, expected, requests, answers)
            if len(answers) == len(requests):
                return answers
            if not received:
                raise _NotReachedError("xenstored does not answer")

    def _take_answers(
        self, received: bytes, expected: int, requests: list[tuple[int, bytes]], answers: list[Answer]
    ) -> None:
        """Take whole messages out of what was received; watch events are ignored."""
        data = self._unread + received
        offset, size = 0, len(data)
        while size - offset >= HEADER_SIZE:
            kind, request_id, _, length = unpack_header(data, offset)
            if length > PAYLOAD_MAX:
                raise _NotReachedError("what xenstored sends is no message")
            end = offset + HEADER_SIZE + length
            if end > size:
                break
            if kind != _EVENT:
                at = len(answers)
                if at == len(requests) or request_id != expected + at or kind not in (requests[at][0], _ERROR):
                    raise _NotReachedError("an answer to somebody else's request came")
                answers.append((kind, data[offset + HEADER_SIZE : end]))
            offset = end
        self._unread = data[offset:]

    # ---- grant table and event channels ---------------------------------------------------------------------------

    def _grant_problems(self) -> list[Problem]:
        """Frames of the firmware's table, and pages of the firmware that backends have mapped."""
        table = self._platform.grant_table
        problems: list[Problem] = []
        if table.in_physmap():
            problems.append(((table.generation,), "the firmware's grant table is still in force", table.user))
        problems += [
            ((mapping.reference, mapping.peer), "a backend still has the firmware's page mapped", mapping.owner)
            for mapping in table.mapped.values()
            if not self._broken(mapping.peer)
        ]
        return problems

    def _take_grant_table(self) -> None:
        """Place the first frame of the table, and no other."""
        hypervisor = self._platform.hypervisor
        for gfn, placed in list(hypervisor.physmap.items()):
            if placed[0] == GRANT_TABLE:
                hypervisor.remove_from_physmap(OPERATING_SYSTEM, gfn)
        hypervisor.add_to_physmap(OPERATING_SYSTEM, GRANT_TABLE, 0, _TABLE_GFN)

    def _channel_problems(self) -> list[Problem]:
        """Ports of the firmware that backends are bound to."""
        platform = self._platform
        return [
            ((channel.port, peer.path), "a backend is still bound to the firmware's event channel", channel.owner)
            for channel, peer in platform.event_channels.bound()
            if peer is not platform.xenstored and not self._broken(peer.path)
        ]

    def _broken(self, path: str) -> bool:
        """Whether no firmware could have made the device at `path` let go."""
        if self._store_was_broken:
            return True
        device = self._platform.device_at(path)
        return device is not None and device.broken

    # ---- devices --------------------------------------------------------------------------------------------------

    def _devices(self, devices: Iterator[Backend]) -> None:
        """Find, connect and use every device. Leaves those that it has not come to."""
        platform = self._platform
        self._settle()
        listed = self._listed()
        here = [device for device in platform.devices if device.path in listed]
        folders = self._exchange([(_READ, f"{device.path}/backend\0".encode()) for device in here])
        states = self._exchange([(_READ, folder + b"/state\0") for _, folder in folders])
        found = {here[at].path: (folders[at], states[at][1]) for at in range(len(here))}
        for device in devices:
            reason = ""
            if self._broken(device.path):
                pass
            elif device.path in found:
                (kind, folder), state = found[device.path]
                reason = self._use(device.path, folder, state) if kind != _ERROR else "there is no node `backend`"
            elif not device.removed:
                reason = "the front end's nodes are missing"
            self._record(device.path, [((), reason, device.frontend_agent)] if reason else [])

    def _listed(self) -> dict[str, None]:
        """Paths of the devices that the store knows."""
        types = self._exchange([(_DIRECTORY, b"device\0")])[0][1].split(b"\0")[:-1]
        answers = self._exchange([(_DIRECTORY, b"device/" + name + b"\0") for name in types])
        return {
            f"device/{name.decode()}/{number.decode()}": None
            for name, (kind, numbers) in zip(types, answers, strict=True)
            if kind != _ERROR
            for number in numbers.split(b"\0")[:-1]
        }

    def _use(self, path: str, folder: bytes, state: bytes) -> str:
        """Connect to a device whose backend is in `state`, and let it serve one request. Gives what is in the way."""
        ask_state = (_READ, folder + b"/state\0")
        if state != _INIT_WAIT_STATE:
            if self._exchange([(_READ, folder + b"/online\0")])[0][1] == b"0":
                return ""
            if state != _CLOSED_STATE:
                return f"the backend is in {_state_name(state)}"
            self._exchange([(_WRITE, f"{path}/state\0".encode() + b"1")])
            self._settle()
            state = self._exchange([ask_state])[0][1]
            if state != _INIT_WAIT_STATE:
                return f"the backend stays in {_state_name(state)}"

        platform = self._platform
        port = platform.event_channels.allocate(OPERATING_SYSTEM, PEER_DOMAIN)
        if port < 0:
            return "no event channel is left"
        pages = []
        writes = []
        for node in _RING_NODES[path.split("/")[1]]:
            reference, gfn = self._grant_page()
            pages.append(platform.memory_page(gfn))
            writes.append((_WRITE, f"{path}/{node}\0{reference}".encode()))
        writes.append((_WRITE, f"{path}/event-channel\0{port}".encode()))
        writes.append((_WRITE, f"{path}/state\0".encode() + _CONNECTED_STATE))
        state = self._exchange([*writes, ask_state])[-1][1]
        if state != _CONNECTED_STATE:
            self._settle()
            state = self._exchange([ask_state])[0][1]
            if state != _CONNECTED_STATE:
                return f"the backend does not connect: it is in {_state_name(state)}"

        number = self._next_request_id
        REQUEST.pack_into(pages[0], 0, number, OPERATION_READ, 0)
        platform.event_channels.send(port, OPERATING_SYSTEM)
        self._settle()
        if RESPONSE.unpack_from(pages[-1], RESPONSE_OFFSET) != (number, STATUS_OK):
            return "the backend does not serve a request"
        return ""

    def _grant_page(self) -> tuple[int, int]:
        """Grant a new page: its reference, one that no backend still uses, and its page number."""
        table = self._platform.grant_table
        reference = self._next_reference
        while reference in table.mapped:
            reference += 1
        assert reference < ENTRIES_PER_FRAME
        self._next_reference = reference + 1
        gfn = self._next_page
        self._next_page += 1
        table.grant(OPERATING_SYSTEM, reference, PEER_DOMAIN, gfn)
        return reference, gfn

    def _settle(self) -> None:
        """Wait until the backends have nothing left to do."""
        platform = self._platform
        for _ in range(SETTLE_STEPS_MAX):
            if not platform.step(OPERATING_SYSTEM):
                return


def _state_name(value: bytes) -> str:
    """A state as Xen spells it: "InitWait"."""
    if value.isdigit() and int(value) < len(XenbusState):
        return "".join(word.capitalize() for word in XenbusState(int(value)).name.split("_"))
    return "no state"
