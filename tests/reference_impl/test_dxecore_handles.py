"""The reference core answers as real firmware does: one case for each line on handles and opens in dxecore_answers.txt.

A session does what the probe did on real firmware, in its order, and gives the lines that come out of it. How a line
reads is told in the reference's own words: handles are numbered in order of creation, `I` is the probe's own image,
`?` an agent that the probe does not know, `If2` an interface, and statuses have no EFI_ prefix.

What a C caller finds behind an out pointer after a refusal follows from the status: NULL or "unchanged".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.handle_database import ALL_HANDLES, BY_PROTOCOL, BY_REGISTER_NOTIFY, RefusalWithValue
from reference_impl.uefi.status import EfiError
from tests.reference_impl.conftest import make_core

ANSWERS = dict(
    line.split(": ", 1)
    for line in Path(__file__).with_name("dxecore_answers.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith(("h.", "open."))
)

NOT_MODELLED: dict[str, str] = {}
"""Lines that the model does not answer, with the reason."""

P1, P2, P3, P4, P5 = (f"00000000-0000-0000-0000-00000000000{number}" for number in range(1, 6))
NAMES = {P1: "P1", P2: "P2", P3: "P3", P4: "P4", P5: "P5"}
IF1, IF2, IF3, IF4 = 0x1001, 0x1002, 0x1003, 0x1004
BOGUS = 0x1234
ATTRIBUTES = {"BHP": 1, "GET": 2, "TST": 4, "CHD": 8, "DRV": 16, "EXC": 32, "D+X": 48}
NATIVE, SIGNAL = 0, 0x200
TPL_APPLICATION, TPL_CALLBACK = 4, 8

Lines = Iterator[tuple[str, str]]


class Machine:
    """A core, the probe's image on it, and the names that the probe prints for what it knows."""

    def __init__(self) -> None:
        self.core = make_core()
        self.image = BootServices(self.core, "Firmware").load_image("Probe")
        self.services = BootServices(self.core, "Probe", self.image)
        self.known = {0: "0", self.image: "I"}

    def create(self, protocol: str = P1, interface: int = IF1, name: str = "") -> int:
        """A new handle with one protocol, known by its number or by `name`."""
        handle = self.services.install_protocol_interface(0, protocol, NATIVE, interface)
        self.known[handle] = name or str(len(self.known) - 1)
        return handle

    def interface(self, service: Callable[..., int], *arguments: object) -> str:
        """Status and interface of a service that gives one; a refusal leaves NULL or nothing behind."""
        try:
            value = service(*arguments)
        except EfiError as error:
            left = "NULL" if error.status.name in ("UNSUPPORTED", "NOT_FOUND") else "unchanged"
            return f"{error.status.name} {left}"
        return f"SUCCESS {interface_name(value)}"

    def install(self, handle: int | None, *pairs: tuple[str, int]) -> str:
        """InstallMultiple on a new handle: status, and the handle where there is none."""
        try:
            made = self.services.install_multiple_protocol_interfaces(handle, *pairs)
        except EfiError as error:
            made, status = 0, error.status.name
        else:
            status = "SUCCESS"
        return status if made else f"{status} handle=NULL"

    def located(self, search_type: int, protocol: str = "", key: int = 0) -> str:
        """LocateHandleBuffer: status and the handles that the probe knows."""
        try:
            address, handles = self.services.locate_handle_buffer(search_type, protocol, key)
        except EfiError as error:
            return f"{error.status.name} n=0 buf=NULL"
        self.services.free_pool(address)
        return " ".join(["SUCCESS", *(self.known[handle] for handle in handles if handle in self.known)])

    def order(self, handle: int) -> str:
        """ProtocolsPerHandle, as names."""
        address, protocols = self.services.protocols_per_handle(handle)
        self.services.free_pool(address)
        return " ".join(NAMES[protocol] for protocol in protocols)

    def records(self, handle: int, protocol: str = P1) -> str:
        """OpenProtocolInformation, or its refusal."""
        try:
            address, records = self.services.open_protocol_information(handle, protocol)
        except EfiError as error:
            return error.status.name
        self.services.free_pool(address)
        shown = [
            f"[{self.known.get(agent, '?')}/{self.known.get(controller, '?')} attr={attributes:#x} open={count}]"
            for agent, controller, attributes, count in records
        ]
        return " ".join([f"n={len(records)}", *shown])


def interface_name(value: int) -> str:
    """`If2` for an interface of the probe, NULL for none."""
    return f"If{value - 0x1000}" if value else "NULL"


def status(service: Callable[..., object], *arguments: object) -> str:
    """The name of the status that a service answers."""
    try:
        service(*arguments)
    except EfiError as error:
        return error.status.name
    return "SUCCESS"


def each(service: Callable[..., object], *calls: tuple[object, ...]) -> str:
    """The statuses of several calls."""
    return " ".join(status(service, *arguments) for arguments in calls)


def install_and_uninstall() -> Lines:
    """Installation on one handle, and its end."""
    machine = Machine()
    bs = machine.services
    handle = machine.create()
    yield "h.install.new_handle", "SUCCESS yes" if handle else "SUCCESS no"
    install = bs.install_protocol_interface
    yield "h.install.duplicate_same_interface", status(install, handle, P1, NATIVE, IF1)
    yield "h.install.duplicate_other_interface", status(install, handle, P1, NATIVE, IF2)
    then = status(install, handle, P2, NATIVE, 0)
    got = machine.interface(bs.open_protocol, handle, P2, machine.image, 0, ATTRIBUTES["GET"])
    yield "h.install.NULL_interface.then_get", f"{then} {got}"
    yield "h.install.interface_type_1", status(install, handle, P3, 1, IF3)
    yield "h.install.NULL_guid", status(install, handle, "", NATIVE, IF3)
    yield "h.install.NULL_handle_pointer", status(install, 0, P3, NATIVE, IF3, False)
    yield "h.install.bogus_handle", status(install, BOGUS, P3, NATIVE, IF3)
    bs.install_protocol_interface(handle, P3, NATIVE, IF3)
    yield "h.protocols_per_handle.installed_P1_P2_P3", status(bs.protocols_per_handle, handle)
    yield "h.protocols_per_handle.order", machine.order(handle)
    uninstall = bs.uninstall_protocol_interface
    yield "h.uninstall.missing", status(uninstall, handle, P4, IF4)
    yield "h.uninstall.wrong_interface", status(uninstall, handle, P1, IF2)
    yield "h.uninstall.NULL_guid", status(uninstall, handle, "", IF1)
    yield "h.uninstall.bogus_handle", status(uninstall, BOGUS, P1, IF1)
    yield "h.handleprotocol.missing", machine.interface(bs.handle_protocol, handle, P4)
    yield "h.handleprotocol.bogus_handle", machine.interface(bs.handle_protocol, BOGUS, P1)
    yield "h.handleprotocol.NULL_handle", status(bs.handle_protocol, 0, P1)
    yield "h.handleprotocol.NULL_guid", status(bs.handle_protocol, handle, "")
    yield "h.handleprotocol.NULL_out", status(bs.handle_protocol, handle, P1, False)
    bs.handle_protocol(handle, P3)
    yield "h.handleprotocol.leaves_record", machine.records(handle, P3)
    reinstall = bs.reinstall_protocol_interface
    yield "h.reinstall.missing", status(reinstall, handle, P4, IF1, IF2)
    yield "h.reinstall.wrong_old", status(reinstall, handle, P1, IF3, IF2)
    done = status(reinstall, handle, P1, IF1, IF2)
    yield "h.reinstall.ok", f"{done} {interface_name(bs.handle_protocol(handle, P1))}"
    yield "h.reinstall.protocols_order_after", machine.order(handle)
    bs.install_protocol_interface(handle, P4, NATIVE, IF4)
    pairs = ((P1, IF2), (P2, 0), (P3, IF3), (P4, IF4))
    yield "h.uninstall.one_by_one", each(uninstall, *((handle, *pair) for pair in pairs))
    yield "h.uninstall.last.then_handleprotocol", status(bs.handle_protocol, handle, P1)
    yield "h.uninstall.last.then_install_on_it", status(install, handle, P1, NATIVE, IF1)


def multiple() -> Lines:
    """Several protocols at once, with and without roll-back."""
    machine = Machine()
    bs = machine.services
    install, uninstall = bs.install_multiple_protocol_interfaces, bs.uninstall_multiple_protocol_interfaces
    handle = machine.create()
    there = ((P1, IF1), (P2, IF2), (P3, IF3))
    refused = status(install, handle, (P2, IF2), (P1, IF1), (P3, IF3))
    then = " ".join(f"{NAMES[protocol]}={status(bs.handle_protocol, handle, protocol)}" for protocol, _ in there)
    yield "h.multi.install.P2_P1dup_P3", f"{refused} then {then}"
    install(handle, (P2, IF2), (P3, IF3))
    yield "h.multi.uninstall.order_before", machine.order(handle)
    refused = status(uninstall, handle, (P1, IF1), (P4, IF4))
    yield "h.multi.uninstall.P1_P4missing", f"{refused} then {machine.order(handle)}"
    refused = status(uninstall, handle, (P3, IF3), (P2, IF2), (P1, IF4))
    yield "h.multi.uninstall.P3_P2_P1wrong", f"{refused} then {machine.order(handle)}"
    done = status(uninstall, handle, *there)
    yield "h.multi.uninstall.all", f"{done} then {status(bs.handle_protocol, handle, P1)}"
    handle = machine.create()
    refused = status(uninstall, handle, (P1, IF1), (P4, IF4))
    yield (
        "h.multi.uninstall.the_last_then_P4missing",
        f"{refused} then P1={status(bs.handle_protocol, handle, P1)}",
    )
    yield "h.multi.uninstall.the_last_then_P4missing.locate_P1", machine.located(BY_PROTOCOL, P1)
    handle = machine.create()
    yield "h.multi.uninstall.empty", status(uninstall, handle)
    yield "h.multi.uninstall.bogus_handle", status(uninstall, BOGUS, (P1, IF1))
    install(handle, (P2, IF2))
    done = status(install, handle, (P3, IF3), (P4, IF4))
    yield "h.multi.install.P3_P4_on_P1_P2.order", f"{done} {machine.order(handle)}"
    yield "h.multi.uninstall.all_four", status(uninstall, handle, *there, (P4, IF4))
    yield "h.multi.install.new_handle.P5_P5dup", machine.install(0, (P5, IF1), (P5, IF1))
    yield "h.multi.install.new_handle.P5_P5dup.locate", machine.located(BY_PROTOCOL, P5)
    yield "h.multi.install.empty", machine.install(0)
    yield "h.multi.install.NULL_handle_pointer", status(install, None, (P1, IF1))
    path = b"\x01\x01\x06\x00\x00\x01\x7f\xff\x04\x00"
    first, equal = (machine.core.place(bs.allocate_pool(4, len(path)), path) for _ in range(2))
    both = [machine.install(0, (guids.DEVICE_PATH_PROTOCOL, address)) for address in (first, equal)]
    yield "h.multi.install.device_path_first_and_equal_again", " ".join(both)
    yield (
        "h.install.device_path_equal_again",
        status(bs.install_protocol_interface, 0, guids.DEVICE_PATH_PROTOCOL, NATIVE, equal),
    )


def locate() -> Lines:
    """LocateHandleBuffer, LocateProtocol and LocateHandle over three handles."""
    machine = Machine()
    bs = machine.services
    handles = [machine.create(P1, interface) for interface in (IF1, IF2, IF3)]
    yield "h.locate.by_protocol.123", machine.located(BY_PROTOCOL, P1)
    yield "h.locate.all_handles.123", machine.located(ALL_HANDLES)
    yield "h.locateprotocol.of_three", machine.interface(bs.locate_protocol, P1)
    bs.reinstall_protocol_interface(handles[0], P1, IF1, IF4)
    yield "h.locate.by_protocol.after_reinstall_1", machine.located(BY_PROTOCOL, P1)
    yield "h.locateprotocol.after_reinstall_1", machine.interface(bs.locate_protocol, P1)
    bs.install_protocol_interface(handles[1], P2, NATIVE, IF2)
    bs.uninstall_protocol_interface(handles[1], P1, IF2)
    bs.install_protocol_interface(handles[1], P1, NATIVE, IF2)
    yield "h.locate.by_protocol.after_uninstall_install_2", machine.located(BY_PROTOCOL, P1)
    yield "h.locate.all_handles.after_that", machine.located(ALL_HANDLES)
    yield "h.locate.by_protocol.none", machine.located(BY_PROTOCOL, P5)
    yield "h.locateprotocol.none", machine.interface(bs.locate_protocol, P5)
    yield "h.locateprotocol.NULL_guid_NULL_out", each(bs.locate_protocol, ("",), (P1, 0, False))

    def sized(protocol: str, size_bytes: int) -> str:
        try:
            found = bs.locate_handle(BY_PROTOCOL, protocol, 0, size_bytes)
        except RefusalWithValue as error:
            return f"{error.status.name} size={error.value}"
        except EfiError as error:
            return f"{error.status.name} size={size_bytes}"
        return f"SUCCESS size={8 * len(found)}"

    yield "h.locatehandle.small_buffer", sized(P1, 8)
    yield "h.locatehandle.ok", sized(P1, 32)
    yield "h.locatehandle.none", sized(P5, 32)
    yield "h.locatehandle.type_3", status(bs.locate_handle, 3, P1, 0, 32)
    yield "h.locatehandle.by_protocol_NULL_guid", status(bs.locate_handle, BY_PROTOCOL, "", 0, 32)
    yield "h.locatehandle.by_notify_NULL_key", status(bs.locate_handle, BY_REGISTER_NOTIFY, "", 0, 32)
    yield "h.locatehandle.NULL_buffer", status(bs.locate_handle, BY_PROTOCOL, P1, 0, 32, False)


def notify() -> Lines:
    """RegisterProtocolNotify, and what is located with its key."""
    machine = Machine()
    bs = machine.services
    calls: list[str] = []

    def event(name: str) -> int:
        return bs.create_event(SIGNAL, TPL_CALLBACK, lambda event, context: calls.append(name))

    def count() -> str:
        number = len(calls)
        calls.clear()
        return str(number)

    def next_handles(times: int) -> str:
        return " ".join(machine.located(BY_REGISTER_NOTIFY, "", key) for _ in range(times))

    first = machine.create()
    watch = event("A")
    key = bs.register_protocol_notify(P1, watch)
    yield "h.notify.register", "SUCCESS" if key else "SUCCESS, but no key"
    yield "h.notify.calls_at_registration", count()
    yield "h.notify.existing_instance.locate_twice", next_handles(2)
    second = machine.create()
    yield "h.notify.calls_after_install", count()
    yield "h.notify.one_install.locate_twice", next_handles(2)
    tpl = bs.raise_tpl(TPL_CALLBACK)
    machine.create()
    machine.create()
    bs.restore_tpl(tpl)
    yield "h.notify.calls_for_two_installs_at_tpl_8", count()
    yield "h.notify.two_installs.locate_three_times", next_handles(3)
    bs.reinstall_protocol_interface(first, P1, IF1, IF2)
    yield "h.notify.calls_for_reinstall", count()
    keyed = [machine.interface(bs.locate_protocol, "", key) for _ in range(2)]
    yield "h.notify.locateprotocol_by_key_NULL_guid_twice", " ".join(keyed)
    keyed = [machine.interface(bs.locate_protocol, P1, key) for _ in range(2)]
    yield "h.notify.locateprotocol_by_key_twice", " ".join(keyed)
    bs.uninstall_protocol_interface(second, P1, IF1)
    yield "h.notify.calls_for_uninstall", count()
    bs.uninstall_protocol_interface(machine.create(), P1, IF1)
    yield "h.notify.installed_then_removed.locate", next_handles(1)
    bad = (("", watch), (P1, 0), (P1, watch, False))
    yield "h.notify.bad_args", each(bs.register_protocol_notify, *bad)
    bs.close_event(watch)
    events = [event(name) for name in "ABC"]
    for one in events:
        bs.register_protocol_notify(P1, one)
    calls.clear()
    machine.create()
    yield "h.notify.three_registrations.order", " ".join(calls)
    for one in events:
        bs.close_event(one)
    calls.clear()
    machine.create()
    yield "h.notify.after_close_event", " ".join(calls) or "-"


def open_matrix() -> Lines:
    """Every kind of open after every other, by the same or another agent, for the same or another controller."""
    for line, other_agent, other_controller in (
        ("same_agent_same_ctrl", False, False),
        ("other_agent_same_ctrl", True, False),
        ("same_agent_other_ctrl", False, True),
    ):
        for first, first_attributes in ATTRIBUTES.items():
            cells = []
            for second, second_attributes in ATTRIBUTES.items():
                machine = Machine()
                bs = machine.services
                handle, a, b, c, d = (machine.create() for _ in range(5))
                bs.open_protocol(handle, P1, a, c, first_attributes)
                later = (handle, P1, b if other_agent else a, d if other_controller else c, second_attributes)
                answer, given = "OK", True
                try:
                    bs.open_protocol(*later)
                except EfiError as error:
                    answer = {"ALREADY_STARTED": "STARTED", "ACCESS_DENIED": "DENIED"}[error.status.name]
                    given = isinstance(error, RefusalWithValue) and error.value == IF1
                records = machine.core.handles.open_records(handle, P1)
                cells.append(f"{second}={answer}/{len(records)}x{records[-1][3]}{'' if given else '!'}")
            yield f"open.matrix.{line}.{first}", " ".join(cells)


def open_arguments() -> Lines:
    """What OpenProtocol makes of null and bogus arguments."""
    machine = Machine()
    bs = machine.services
    handle, a, c = (machine.create() for _ in range(3))
    get, child, driver, exclusive = (ATTRIBUTES[name] for name in ("GET", "CHD", "DRV", "EXC"))

    def opens(*calls: tuple[int, int, int]) -> str:
        return each(bs.open_protocol, *((handle, P1, *call) for call in calls))

    yield "open.arg.driver.NULL_agent_NULL_ctrl", opens((0, c, driver), (a, 0, driver))
    yield "open.arg.exclusive.NULL_agent_NULL_ctrl", opens((0, c, exclusive), (a, 0, exclusive))
    bs.close_protocol(handle, P1, a, 0)
    children = ((0, c, child), (a, 0, child), (a, handle, child))
    yield "open.arg.child.NULL_agent_NULL_ctrl_ctrl_is_handle", opens(*children)
    yield "open.arg.get.NULL_agent_bogus_agent", opens((0, 0, get), (BOGUS, 0, get))
    yield "open.arg.get.NULL_and_bogus_agent.records", machine.records(handle)
    yield "open.arg.driver.bogus_agent_bogus_ctrl", opens((BOGUS, c, driver), (a, BOGUS, driver))
    yield "open.arg.attributes_0_3_0x18_0x28_0x40", opens(*((a, c, bits) for bits in (0, 3, 0x18, 0x28, 0x40)))
    test = ATTRIBUTES["TST"]
    null_outs = ((handle, P1, a, c, get, False), (handle, P1, a, c, test, False))
    yield "open.arg.NULL_out.get_test", each(bs.open_protocol, *null_outs)
    tested = bs.open_protocol(handle, P1, a, c, test)
    yield "open.arg.test.writes_out", f"SUCCESS {'changed' if tested else 'unchanged'}"
    yield "open.arg.missing_protocol", machine.interface(bs.open_protocol, handle, P2, a, c, get)
    yield "open.arg.missing_protocol_test", status(bs.open_protocol, handle, P2, a, c, test)
    yield "open.arg.NULL_guid", status(bs.open_protocol, handle, "", a, c, get)


def open_records() -> Lines:
    """OpenProtocolInformation and CloseProtocol."""
    machine = Machine()
    bs = machine.services
    handle, a, b, c, d = (machine.create(name=name) for name in ("1", "a", "b", "c", "d"))
    yield "open.info.never_opened", machine.records(handle)
    yield "open.info.missing_protocol", machine.records(handle, P2)
    yield "open.info.bogus_handle", machine.records(BOGUS)
    for agent, controller, name in (
        *((a, c, "GET"), (a, c, "GET"), (a, c, "TST")),
        *((b, 0, "GET"), (a, c, "DRV"), (a, c, "GET")),
    ):
        bs.open_protocol(handle, P1, agent, controller, ATTRIBUTES[name])
    yield "open.info.a_GET_GET_TST_b_GET_a_DRV_GET", machine.records(handle)
    close = bs.close_protocol
    done = status(close, handle, P1, a, c)
    yield "open.close.a_c_once", f"{done} {machine.records(handle)}"
    yield "open.close.again_not_opened", status(close, handle, P1, a, c)
    yield "open.close.b_wrong_ctrl_right_ctrl", each(close, (handle, P1, b, c), (handle, P1, b, 0))
    yield "open.close.missing_protocol", status(close, handle, P2, a, c)
    bad = ((handle, P1, 0, c), (handle, P1, a, BOGUS), (handle, "", a, c))
    yield "open.close.NULL_agent_bogus_ctrl_NULL_guid", each(close, *bad)
    for name, attributes in ATTRIBUTES.items():
        handle = machine.create(P3)
        bs.install_protocol_interface(handle, P4, NATIVE, IF4)
        bs.open_protocol(handle, P3, b, d, ATTRIBUTES["GET"])
        bs.open_protocol(handle, P3, a, c, attributes)
        answer = status(bs.uninstall_protocol_interface, handle, P3, IF1)
        yield f"h.uninstall.open_{name}", f"{answer} then {machine.records(handle, P3)}"
    bs.open_protocol(handle, P4, a, c, ATTRIBUTES["CHD"])
    yield "h.reinstall.open_CHD", status(bs.reinstall_protocol_interface, handle, P4, IF4, IF1)
    handle = machine.create()
    bs.open_protocol(handle, P1, a, c, ATTRIBUTES["DRV"])
    gone = status(bs.uninstall_protocol_interface, a, P1, IF1)
    number = machine.records(handle).split()[0]
    closed = status(close, handle, P1, a, c)
    other = status(bs.open_protocol, handle, P1, b, c, ATTRIBUTES["DRV"])
    yield "open.agent_handle_gone", f"{gone} {number} close={closed} open_by_other={other}"


SESSIONS = (install_and_uninstall, multiple, locate, notify, open_matrix, open_arguments, open_records)


@cache
def probed() -> dict[str, str]:
    """All lines that the sessions give."""
    return {line: text for session in SESSIONS for line, text in session()}


def test_every_line_has_a_probe_or_a_reason() -> None:
    """No line is left out, and no probe is for a line that does not exist."""
    assert set(ANSWERS) == set(probed()) | set(NOT_MODELLED)
    assert len(NOT_MODELLED) <= 5


@pytest.mark.parametrize("line", [line for line in ANSWERS if line not in NOT_MODELLED])
def test_the_core_answers_as_firmware_does(line: str) -> None:
    """The reference core gives the right-hand side of the line."""
    assert probed().get(line) == ANSWERS[line]
