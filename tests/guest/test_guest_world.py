"""The shipped XenBusDxe and XenPvBlkDxe (edk2 2020.11) in the guest world: what they did in a trial, they do here."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.drivers import GuestFunction
from guest.image import ImageError
from guest.machine import GuestFault, Machine
from guest.world import GuestWorld, open_drivers, run
from oracles import judge
from oracles.memory_services import MEMORY_SERVICES
from reference_impl.scenario import Operation, operation, scenario
from reference_impl.trace import Kind, Phase, Record
from reference_impl.uefi import guids
from reference_impl.xen.shared_ring import RING_SIZE

CONNECT, DISCONNECT, EXIT = operation("connect"), operation("disconnect"), operation("exit")


@pytest.fixture(scope="module")
def drivers():
    """The images of the shipped drivers."""
    try:
        return open_drivers()
    except ImageError as error:
        pytest.skip(f"no images, run scripts/fetch-firmware: {error}")


def described(*operations: Operation, disks: int = 1, **more):
    """A scenario with block devices."""
    return scenario(design="disconnect", devices=("block",) * disks, operations=operations, **more)


@pytest.fixture
def made(drivers):
    """Makes worlds, and gives their machines back."""
    machines = []

    def make(*operations, counting=False, **more):
        machines.append(Machine(counting))
        return GuestWorld(described(*operations, **more), drivers, machines[-1])

    yield make
    for machine in machines:
        machine.close()


def records(trace, kind, **fields):
    """The records of one kind whose fields have these values."""
    named = [Record(*record) for record in trace.records if record[0] == kind]
    return [record for record in named if all(getattr(record, name) == value for name, value in fields.items())]


def statuses(trace):
    """How each operation ended: None, a status, or why it was skipped."""
    return [record.status for record in records(trace, Kind.OPERATION)]


def faults(trace):
    """Records of a run that ended early."""
    return records(trace, Kind.FAULT) + records(trace, Kind.STUCK)


def test_entry_points_install_driver_bindings(made):
    """Both drivers find what they need and publish a driver binding on their image handle; nothing is recorded yet."""
    world = made()
    handles = world.core.handles
    images = [
        world.images.at(world.core.handles.interface_of(handle, guids.DRIVER_BINDING_PROTOCOL))
        for handle in handles.handles_with(guids.DRIVER_BINDING_PROTOCOL)
    ]
    assert [image.name for image in images] == ["XenBusDxe", "XenPvBlkDxe"]
    assert [image.handle for image in images] == handles.handles_with(guids.DRIVER_BINDING_PROTOCOL)
    assert world.trace.records == []


def test_connect_gives_a_child_with_block_io(made):
    """The bus makes a child for the disk, and the block driver publishes its protocol there."""
    world = made(CONNECT)
    trace = world.run()
    child = world._handle("child-0")
    assert world.core.handles.interface_of(child, guids.BLOCK_IO_PROTOCOL)
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == ["XenBusDxe", "XenPvBlkDxe"]
    assert statuses(trace) == [None]
    assert faults(trace) == []


def test_exit_handler_is_where_the_trial_found_it(made):
    """The notification is XenBusDxe+0x2af at TPL_CALLBACK, with the bus's private data as context."""
    trace = made(CONNECT).run()
    (created,) = [record for record in records(trace, Kind.SERVICE, name="CreateEvent") if record.arguments[0] == 0x201]
    assert created.agent == "XenBusDxe"
    assert created.arguments[1:3] == (8, "XenBusDxe+0x2af")


@pytest.mark.parametrize("reconnection", [True, False], ids=["reconnection", "older"])
@pytest.mark.parametrize(("disks", "calls"), [(0, 1), (1, 113), (2, 225), (4, 449)])
def test_exit_handler_calls_memory_services(drivers, disks, calls, reconnection):
    """tianocore/edk2#9802 on the shipped binary: so many direct calls, and exactly one reset of each resource."""
    trace = run(described(CONNECT, EXIT, disks=disks, reconnection=reconnection), drivers)
    in_exit = records(trace, Kind.SERVICE, phase=Phase.EXIT)
    assert sum(record.name in MEMORY_SERVICES for record in in_exit) == calls
    assert statuses(trace) == [None, None]
    assert [(reset.name, reset.value) for reset in records(trace, Kind.RESET)] == [
        ("ring", "reconnected" if reconnection else "cleared"),
        ("grant-table", "removed"),
    ]
    findings = judge(trace)
    assert ("memory-services", "direct-call", "XenBusDxe") in {
        (each.oracle, each.rule, each.agent) for each in findings
    }
    assert "connection-reset" not in {each.oracle for each in findings}
    left = [record.name for record in records(trace, Kind.TAKE_OVER) if record.status != "OK"]
    assert left == (["memory-map"] if disks else [])


def test_older_reset_leaves_the_ring_as_the_trial_saw_it(made):
    """Both rings 0xff and all indices zero."""
    world = made(CONNECT, DISCONNECT, reconnection=False)
    world.run()
    page = bytes(world.platform.store_page)
    assert page[: 2 * RING_SIZE] == b"\xff" * (2 * RING_SIZE)
    assert not any(page[2 * RING_SIZE : 2 * RING_SIZE + 16])


def test_same_scenario_gives_the_same_trace(drivers):
    """Also on a machine that counts."""
    what = described(CONNECT, DISCONNECT, CONNECT, operation("request"), EXIT, disks=2)
    first = run(what, drivers).records
    assert run(what, drivers).records == first
    machine = Machine(counting=True)
    assert GuestWorld(what, drivers, machine).run().records == first
    machine.close()


def test_request_reads_the_sector(made):
    """Data comes through the grant table and the ring: every sector of a fresh disk tells its number."""
    world = made(CONNECT, operation("request"))
    assert statuses(world.run()) == [None, None]
    assert world.machine.read(world._request_page, 512) == bytes(512)
    block = world.platform.devices[0]
    block.sectors[0] = b"sector 0" * 64
    world.do(2, operation("request"))
    assert world.machine.read(world._request_page, 512) == b"sector 0" * 64


def test_drivers_write_sectors(made):
    """WriteBlocks of Block I/O reaches the backend's disk (UEFI 2.10 §13.9)."""
    world = made(CONNECT)
    world.run()
    machine = world.machine
    block_io = world.core.handles.interface_of(world._handle("child-0"), guids.BLOCK_IO_PROTOCOL)
    media = machine.u64(block_io + 8)
    machine.write(world._request_page, b"new data" * 128)
    world.images.enter(machine.u64(block_io + 32), block_io, machine.u32(media), 7, 1024, world._request_page)
    assert world.platform.devices[0].sectors == {7: b"new data" * 64, 8: b"new data" * 64}


def test_start_stop_start_gives_all_but_the_shared_info_page_back(made):
    """The shipped Stop() keeps one reserved page each time: the shared info page, which stays in the physmap."""
    world = made(CONNECT, DISCONNECT, CONNECT)
    memory = world.core.memory
    held, reserved = [], []
    for index, step in enumerate(world.scenario.operations):
        world.do(index, step)
        held.append(sum(memory.live_count(agent) for agent in ("XenBusDxe", "XenPvBlkDxe", "DevicePathDxe")))
        reserved.append(sum(kind == 0 for _, kind, _ in memory._pages.values()))
    assert reserved == [1, 1, 2]
    assert held[2] == held[0] + 1
    assert statuses(world.trace) == [None, None, None]


@pytest.mark.parametrize("delay", [1, 3])
def test_backend_that_takes_its_time_is_waited_for(drivers, delay):
    """A driver that only reads memory until something changes gets there, as time passes meanwhile."""
    trace = run(described(operation("backend", delay=delay), CONNECT, operation("request"), EXIT), drivers)
    assert statuses(trace) == [None] * 4
    assert faults(trace) == []


def test_guest_that_waits_on_a_machine_that_does_not_count_is_given_up(made, monkeypatch):
    """Whoever runs it repeats the run on one that counts."""
    from guest import machine
    from guest.machine import NotCountedError

    monkeypatch.setattr(machine, "WATCH_SECONDS", 0.3)
    world = made(operation("backend", delay=21), CONNECT, operation("request"))
    with pytest.raises(NotCountedError):
        world.run()


@pytest.mark.parametrize(
    ("nth", "kind", "place"), [(1, "write", "XenBusDxe+0x2ceb"), (2, "read", "XenBusDxe+0x489 (leaf)")]
)
def test_failed_allocation_ends_in_a_null_pointer(drivers, nth, kind, place):
    """The shipped Start() uses what AllocatePool did not give; the fault ends the run and says where, and who called."""
    failure = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES", nth=nth)
    trace = run(described(failure, CONNECT, EXIT), drivers)
    (fault,) = faults(trace)
    assert (fault.kind, fault.agent, fault.name) == (Kind.FAULT, "XenBusDxe", kind)
    address, *frames = fault.arguments
    assert address < 0x1000
    assert frames[0] == place
    assert all(frame.startswith("XenBusDxe+") for frame in frames)
    assert trace.records[-1] == tuple(fault)


def test_drivers_are_unloaded_and_loaded_again(drivers):
    """Unload disconnects; after loading both, everything starts as before."""
    steps = [operation(kind, driver=name) for name in ("block", "xenbus") for kind in ("unload", "load")]
    trace = run(described(CONNECT, *steps, CONNECT, EXIT), drivers)
    assert statuses(trace) == [None] * 7
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == ["XenBusDxe", "XenPvBlkDxe"] * 2
    assert faults(trace) == []


def test_what_is_not_there_is_skipped(drivers):
    """With the reason, and the run goes on."""
    trace = run(
        described(
            operation("request"),
            operation("load", driver="block"),
            operation("load", driver="network"),
            operation("unload", driver="console"),
            operation("connect", controller="child-0"),
            CONNECT,
            disks=1,
        ),
        drivers,
    )
    assert statuses(trace) == [
        "the bus has no such child",
        "the driver is loaded",
        "there is no image of this driver",
        "the driver is not loaded",
        "the bus has no such child",
        None,
    ]


def test_devices_without_an_image_get_a_child_and_no_driver(drivers):
    """The bus serves them, too."""
    trace = run(scenario(design="disconnect", devices=("network",), operations=(CONNECT, EXIT)), drivers)
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == ["XenBusDxe"]
    assert statuses(trace) == [None, None]


def test_jump_into_an_unloaded_image_is_a_fault(made):
    """What still points there points to nothing."""
    world = made(operation("unload", driver="block"))
    image = world._image("block")
    entry = GuestFunction(world.images, image.base + image.source.entry_point)
    world.run()
    with pytest.raises(GuestFault, match="fetch"):
        entry(0, 0)


def test_shared_info_and_grant_table_are_where_the_driver_put_them(made):
    """While the bus runs the guest sees the hypervisor's own pages; afterwards there is a hole."""
    world = made(CONNECT, DISCONNECT)
    world.do(0, CONNECT)
    machine = world.machine
    placed = {what: gfn for gfn, what in world.platform.hypervisor.physmap.items()}
    assert set(placed) == {(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)}
    for (space, index), gfn in placed.items():
        page = world.platform.grant_table.frames[index] if space else world.platform.event_channels.shared_info
        assert machine.read(gfn << 12, 4096) == bytes(page)
    world.do(1, DISCONNECT)
    assert not machine.is_mapped(placed[1, 0] << 12)
