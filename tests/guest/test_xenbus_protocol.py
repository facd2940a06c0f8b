"""A bus with drivers of both kinds: guest bus with model devices, model bus with the guest's block driver."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.machine import GuestFault, Machine
from guest.world import GuestWorld, open_drivers, run
from guest.xenbus_protocol import BACKEND, MEMBERS, NODE, STATUSES, TYPE, print_ascii, text_at
from oracles import judge
from reference_impl.scenario import operation, scenario
from reference_impl.trace import Kind, Phase, Record
from reference_impl.uefi import guids
from reference_impl.uefi.status import EfiStatus
from tests.guest.firmware import need_firmware
from tests.guest.test_thunks import Guest

CONNECT, DISCONNECT, EXIT = operation("connect"), operation("disconnect"), operation("exit")
MIXED = ("shipped-bus", "shipped-block")
OK = 0


@pytest.fixture(scope="module")
def images():
    """Images by design."""
    return {design: need_firmware(design) for design in MIXED}


def described(design, *operations, devices=("block",), **more):
    """A scenario of one of the designs."""
    return scenario(world="efi-image", design=design, devices=devices, operations=operations, **more)


@pytest.fixture
def made(images):
    """Makes worlds, and gives their machines back."""
    machines = []

    def make(design, *operations, **more):
        machines.append(Machine())
        return GuestWorld(described(design, *operations, **more), images[design], machines[-1])

    yield make
    for machine in machines:
        machine.close()


def records(trace, kind, **fields):
    """The records of one kind whose fields have these values."""
    named = [Record(*record) for record in trace.records if record[0] == kind]
    return [record for record in named if all(getattr(record, name) == value for name, value in fields.items())]


def statuses(trace):
    """How each operation ended."""
    return [record.status for record in records(trace, Kind.OPERATION)]


@pytest.mark.parametrize("reconnection", [True, False], ids=["reconnection", "older"])
@pytest.mark.parametrize("design", MIXED)
def test_both_start_serve_stop_restart_exit_and_are_judged(images, design, reconnection):
    """The bus and the driver of the other kind get along in everything that a scenario can do."""
    steps = (CONNECT, operation("request"), DISCONNECT, CONNECT, operation("request", device=1), EXIT)
    what = described(design, *steps, devices=("block", "block"), reconnection=reconnection)
    trace = run(what, images[design])
    assert statuses(trace) == [None] * 6
    assert records(trace, Kind.FAULT) + records(trace, Kind.STUCK) == []
    started = [record.agent for record in records(trace, Kind.ENTRY, name="Start", status=EfiStatus.SUCCESS)]
    assert started == ["XenBusDxe", "XenPvBlkDxe", "XenPvBlkDxe"] * 2
    resets = [(reset.agent, reset.name, reset.phase) for reset in records(trace, Kind.RESET)]
    assert resets == [
        ("XenBusDxe", name, phase) for phase in (Phase.BOOT, Phase.EXIT) for name in ("ring", "grant-table")
    ]
    found = {(each.oracle, each.rule) for each in judge(trace)}
    assert ("memory-services", "direct-call") in found
    assert "connection-reset" not in {oracle for oracle, _ in found}
    assert [step.name for step in records(trace, Kind.TAKE_OVER) if step.status != "OK"] == ["memory-map"]
    assert run(what, images[design]).records == trace.records


@pytest.mark.parametrize("design", MIXED)
def test_backend_goes_through_the_same_states_as_with_two_guests(images, design):
    """Front end and back end meet in the same order, whoever the drivers are."""
    states = [
        [(each.agent, each.arguments) for each in records(run(what, drivers), Kind.XENBUS_STATE)]
        for what, drivers in (
            (described(design, CONNECT, EXIT), images[design]),
            (described("shipped", CONNECT, EXIT), open_drivers("shipped")),
        )
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize(("kind", "agent"), [("network", "XenPvNetDxe"), ("console", "XenPvConsoleDxe")])
def test_guest_bus_serves_devices_that_no_image_exists_for(images, kind, agent):
    """Network and console of the model run on the shipped bus."""
    restart = (operation("unload", driver=kind), operation("load", driver=kind), CONNECT)
    steps = (CONNECT, operation("request"), *restart, operation("request"), EXIT)
    trace = run(described("shipped-bus", *steps, devices=(kind,)), images["shipped-bus"])
    assert statuses(trace) == [None] * 4 + [EfiStatus.NOT_FOUND, None, None]  # connect finds nothing to do on the bus
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == ["XenBusDxe", agent, agent]


def test_devices_of_other_kinds_get_the_same_device_path(images):
    """Only "vbd" has one of its own in the shipped bus: of network and console with number 0, the second has no child."""
    trace = run(described("shipped-bus", CONNECT, devices=("network", "console")), images["shipped-bus"])
    installs = records(trace, Kind.SERVICE, name="InstallMultipleProtocolInterfaces", agent="XenBusDxe")
    assert [record.status for record in installs] == [EfiStatus.SUCCESS, EfiStatus.ALREADY_STARTED]


@pytest.mark.parametrize("design", MIXED)
def test_drivers_of_both_kinds_are_unloaded_and_loaded_again(images, design):
    """Whichever of the two is in Python."""
    steps = [operation(kind, driver=name) for name in ("block", "xenbus") for kind in ("unload", "load")]
    trace = run(described(design, CONNECT, *steps, CONNECT, EXIT), images[design])
    assert statuses(trace) == [None] * 7


def test_what_the_guest_bus_hands_over_is_freed_by_the_driver_that_asked(images):
    """A value that XsRead gives is pool; the model's driver gives it back in its own name."""
    trace = run(described("shipped-bus", CONNECT), images["shipped-bus"])
    assert records(trace, Kind.SERVICE, name="FreePool", agent="XenPvBlkDxe", status=EfiStatus.SUCCESS)
    assert not records(trace, Kind.SERVICE, name="FreePool", agent="firmware")


def test_failed_allocation_of_the_guest_driver_is_a_fault_on_the_model_bus_too(images):
    """The agent that is named is the guest's."""
    failure = operation("fail", call="AllocatePages -> EFI_OUT_OF_RESOURCES", nth=2)
    trace = run(described("shipped-block", failure, CONNECT), images["shipped-block"])
    (fault,) = records(trace, Kind.FAULT)
    assert fault.agent == "XenPvBlkDxe"


class Bus:
    """Calls the members of the model's bus protocol as guest code does."""

    def __init__(self, world):
        self.world = world
        self.machine = world.machine
        self.child = world._handle("child-0")
        self.interface = world.core.handles.interface_of(self.child, guids.XENBUS_PROTOCOL)
        self.out = world._request_page
        self.texts = world._request_page + 64

    def text(self, text, place=0):
        """The address of a text."""
        address = self.texts + 128 * place
        self.machine.write(address, text.encode() + b"\0")
        return address

    def call(self, member, *arguments):
        """Call a member; what it answers."""
        function = self.machine.u64(self.interface + 8 * MEMBERS.index(member))
        return self.world.images.call(function, self.interface, *arguments)

    def value(self):
        """The text that a read has left in pool, which is given back."""
        buffer = self.machine.u64(self.out)
        text = text_at(self.machine, buffer)
        self.world.firmware.free_pool(buffer)
        return text


@pytest.fixture
def bus(made):
    """The model's bus with one child that nobody manages."""
    world = made("shipped-block", operation("connect", recursive=False))
    world.run()
    return Bus(world)


def test_protocol_is_laid_out_as_in_edk2(bus):
    """Sixteen members, then what the device is."""
    machine, interface = bus.machine, bus.interface
    assert all(struct.unpack("<16Q", machine.read(interface, 128)))
    texts = [text_at(machine, machine.u64(interface + offset)) for offset in (TYPE, NODE, BACKEND)]
    assert texts == ["vbd", "device/vbd/0", "/local/domain/0/backend/vbd/1/0"]
    assert machine.u16(interface + 136) == 0


def test_store_members_answer_values_and_errors(bus):
    """XENSTORE_STATUS is a number of its own; a transaction is a pointer to its id."""
    assert bus.call("XsRead", 0, bus.text("device-type"), bus.out) == OK
    assert bus.value() == "disk"
    assert bus.call("XsBackendRead", 0, bus.text("state"), bus.out) == OK
    assert bus.value() == "2"
    assert bus.call("XsRead", 0, bus.text("nothing"), bus.out) == STATUSES.index("ENOENT")
    transaction = bus.out + 16
    assert bus.call("XsTransactionStart", transaction) == OK
    directory, node, form = bus.text("device/vbd/0", 0), bus.text("number", 1), bus.text("%d-%a", 2)
    assert bus.call("XsPrintf", transaction, directory, node, form, 7, directory) == OK
    assert bus.call("XsRead", 0, node, bus.out) == STATUSES.index("ENOENT")
    assert bus.call("XsTransactionEnd", transaction, 0) == OK
    assert bus.call("XsRead", 0, node, bus.out) == OK
    assert bus.value() == "7-device/vbd/0"
    assert bus.call("XsRemove", 0, node) == OK
    assert bus.call("XsRead", 0, node, bus.out) == STATUSES.index("ENOENT")
    assert bus.call("SetState", 0, 3) == OK
    assert bus.world.platform.devices[0].frontend_state == 3


def test_watches_grants_and_ports_are_handed_out(bus):
    """Each by the number that takes it back."""
    machine = bus.machine
    for member in ("RegisterWatch", "RegisterWatchBackend"):
        assert bus.call(member, bus.text("state"), bus.out) == OK
        token = machine.u64(bus.out)
        assert bus.call("WaitForWatch", token) == OK
        bus.call("UnregisterWatch", token)
        assert bus.call("WaitForWatch", token) == STATUSES.index("ENOENT")
    assert bus.call("GrantAccess", 0, 0x1234, 1, bus.out) == OK
    reference = machine.u32(bus.out)
    entry = bytes(bus.world.platform.grant_table.frames[0][reference * 8 : reference * 8 + 8])
    assert struct.unpack("<HHI", entry) == (1 | 4, 0, 0x1234)
    assert bus.call("GrantEndAccess", reference) == OK
    assert bus.call("EventChannelAllocate", 0, bus.out) == OK
    port = machine.u32(bus.out)
    assert [bus.call(member, port) for member in ("EventChannelNotify", "EventChannelClose")] == [OK, OK]
    assert bus.call("EventChannelNotify", port) == 0xFFFFFFFF & -22


def test_refused_allocation_is_enomem(bus):
    """Where the bus has no memory for the value, the caller is told so."""
    bus.world._may_fail = lambda call: True
    bus.world.core.failures.may_fail = lambda call: True
    bus.world.core.failures.arm("AllocatePool", 1, EfiStatus.OUT_OF_RESOURCES)
    assert bus.call("XsRead", 0, bus.text("device-type"), bus.out) == STATUSES.index("ENOMEM")


def test_call_without_a_protocol_is_a_fault(bus):
    """`This` must be one that the bus has laid out."""
    function = bus.machine.u64(bus.interface)
    with pytest.raises(GuestFault, match="no XENBUS_PROTOCOL"):
        bus.world.images.call(function, bus.out, 0, bus.text("state"), bus.out)


def test_interface_of_a_child_that_has_gone_holds_nothing(bus):
    """Its memory was freed: whoever calls through it jumps to nowhere."""
    bus.world.do(1, DISCONNECT)
    assert bus.machine.u64(bus.interface) == 0xDFDF_DFDF_DFDF_DFDF


@pytest.mark.parametrize(
    ("form", "arguments", "text"),
    [
        ("plain 100%%", (), "plain 100%"),
        ("%d %u", (0xFFFFFFFF, 0xFFFFFFFF), "-1 4294967295"),
        ("%ld %lx", (1 << 63, 0xABCDEF0123), "-9223372036854775808 abcdef0123"),
        ("%X|%5d|%-5d|%05d|%c", (0xAB, 42, 42, 42, 65), "AB|   42|42   |00042|A"),
    ],
)
def test_formats_are_those_of_edk2(form, arguments, text):
    """Numbers are 32 bits wide unless l says 64."""
    assert print_ascii(None, form, lambda index: arguments[index]) == text


def test_texts_in_formats_come_from_memory():
    """Of one byte each, and of two."""
    guest = Guest()
    try:
        narrow = guest.firmware.place(b"narrow\0")
        wide = guest.firmware.place("wide\0".encode("utf-16le"))
        assert print_ascii(guest.machine, "%a and %s", lambda index: (narrow, wide)[index]) == "narrow and wide"
    finally:
        guest.machine.close()
