"""The core world: raw service calls with any arguments."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.core_world import (
    DRIVERS,
    SERVICES,
    STEP_BUDGET,
    VALUES,
    CoreWorld,
    Driver,
    Override,
    Stubborn,
    check_invariants,
    notification_functions,
    run,
)
from reference_impl.scenario import (
    CORE_CALLS,
    OPERATIONS,
    Blob,
    Operation,
    operation,
    operations_of,
    scenario,
)
from reference_impl.trace import Kind, Phase, Record
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.status import EfiStatus

OTHER_CALLS, NULL_OUT = 128, 192  # added to the last selector
FUNCTIONS = {
    function.__name__: place
    for place, function in enumerate(notification_functions(CoreWorld(scenario(world="core")).caller, None))
}


def call(service: str, *selectors: int) -> Operation:
    """A `call` operation; missing selectors are 0."""
    return operation("call", service=service, **dict(zip("abcde", selectors, strict=False)))


def create_event(
    function: str, *, event_type: int = 0x200, tpl: int = 8, context: int = 0, group: str = ""
) -> Operation:
    """A `call` operation that creates an event with one of the world's notification functions."""
    selectors = (VALUES["event-type"].index(event_type), VALUES["tpl"].index(tpl), FUNCTIONS[function], context)
    if group:
        return call("CreateEventEx", *selectors, VALUES["group"].index(group))
    return call("CreateEvent", *selectors)


def records_of(*operations: Operation, **values) -> list[Record]:
    """The trace of a run of these operations."""
    return [Record(*entry) for entry in run(scenario(world="core", operations=operations, **values)).records]


def calls(records: list[Record], name: str) -> list[Record]:
    """The calls of one service."""
    return [record for record in records if record.kind == Kind.SERVICE and record.name == name]


def entries(records: list[Record], name: str) -> list[Record]:
    """The entries into driver code of one name."""
    return [record for record in records if record.kind == Kind.ENTRY and record.name == name]


def operation_values(kind: str) -> st.SearchStrategy[Operation]:
    """Any operation of a kind."""
    fields = OPERATIONS[kind].fields
    assert not any(isinstance(field, Blob) for field in fields)
    return st.tuples(*(st.sampled_from(field.values) for field in fields)).map(lambda values: Operation(kind, values))


SCENARIOS = st.builds(
    lambda operations, order: scenario(world="core", operations=tuple(operations), order=order),
    st.lists(
        st.one_of(
            *(operation_values(kind) for kind in operations_of("core")), *(operation_values("call") for _ in range(8))
        ),
        max_size=30,
    ),
    st.sampled_from(["edk2", "fifo", (1, 0), (2, 0, 1)]),
)


# ---- the table ----------------------------------------------------------------------------------------------------


def test_every_service_of_the_language_can_be_called() -> None:
    """The table has the services that a `call` operation may name, and no others."""
    assert set(SERVICES) == set(CORE_CALLS)
    assert all(getattr(BootServices, entry.method).service_name == name for name, entry in SERVICES.items())


@pytest.mark.parametrize("name", SERVICES)
def test_selectors_reach_every_parameter(name: str) -> None:
    """No service needs more selectors than there are; a fifth has only 64 values, which its kind does not exceed."""
    kinds = [part for kind in SERVICES[name].kinds for part in ((kind,) if isinstance(kind, str) else kind)]
    assert len(kinds) <= 5
    if len(kinds) == 5 and kinds[4] in VALUES:
        assert len(VALUES[kinds[4]]) <= 64


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_called_once_by_the_caller(name: str) -> None:
    """With the simplest selectors the call stands in the trace, below its operation, and has ended."""
    records = records_of(call(name))
    assert (records[0].kind, records[0].name, records[0].status, records[0].value) == (Kind.OPERATION, "call", None, 0)
    assert (records[1].kind, records[1].name, records[1].agent) == (Kind.SERVICE, name, "caller")
    assert records[1].status is not None


# ---- what a run keeps ---------------------------------------------------------------------------------------------


@given(SCENARIOS)
@settings(max_examples=150, deadline=None)
def test_nothing_but_refusals_comes_out_of_the_core(made) -> None:
    """Whatever is called: no exception, every invariant holds, and the trace is the same a second time."""
    trace = run(made)
    assert trace.records == run(made).records
    assert trace.depth == 0
    stuck = any(record[0] == Kind.STUCK for record in trace.records)
    assert stuck or trace.tpl == 4 or trace.phase == Phase.RUNTIME
    assert len(trace.records) <= STEP_BUDGET + 1000


def test_our_own_bug_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is no refusal is not swallowed."""

    def broken(self: BootServices, microseconds: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(BootServices, "stall", broken)
    with pytest.raises(ZeroDivisionError):
        records_of(call("Stall"))


def test_memory_that_the_core_loses_is_noticed() -> None:
    """A buffer that belongs to no record, and a record whose buffer is gone."""
    world = CoreWorld(scenario(world="core"))
    check_invariants(world.core, world.images)
    lost = world.core.allocate(8)
    with pytest.raises(AssertionError, match="the core holds"):
        check_invariants(world.core, world.images)
    world.core.free(lost)
    check_invariants(world.core, world.images)


def test_tpl_is_restored_at_the_end() -> None:
    """What was held back runs then."""
    raise_to_31 = call("RaiseTPL", VALUES["tpl"].index(31))
    records = records_of(create_event("returns"), raise_to_31, call("SignalEvent"))
    restore = calls(records, "RestoreTPL")[-1]
    assert restore.arguments == (4,)
    assert restore.depth == 0
    assert entries(records, "Notify")[0].tpl == 8


# ---- selectors ----------------------------------------------------------------------------------------------------


def test_last_selector_says_who_calls() -> None:
    """From 128 it is the other agent, from 192 the caller with NULL for the answer."""
    records = records_of(
        *(call("AllocatePool", 0, 0, 0, 0, how) for how in (0, OTHER_CALLS, NULL_OUT)), call("FreePool", 1, 0, 0, 0, 0)
    )
    assert [(record.agent, record.status) for record in calls(records, "AllocatePool")] == [
        ("caller", EfiStatus.SUCCESS),
        ("other", EfiStatus.SUCCESS),
        ("caller", EfiStatus.INVALID_PARAMETER),
    ]
    assert [record.name for record in records if record.kind == Kind.MEMORY] == ["foreign-free"]


def test_addresses_of_the_past_stay_in_the_list() -> None:
    """The same selector frees the same buffer twice."""
    records = records_of(call("AllocatePool"), call("FreePool"), call("FreePool"))
    assert [record.status for record in calls(records, "FreePool")] == [
        EfiStatus.SUCCESS,
        EfiStatus.INVALID_PARAMETER,
    ]
    assert [record.name for record in records if record.kind == Kind.MEMORY] == ["double-free"]


@pytest.mark.parametrize("selector", [192, 193, 255])
def test_high_selectors_pick_odd_values(selector: int) -> None:
    """An event that was never made, although there is one."""
    records = records_of(create_event("returns"), call("SignalEvent", selector))
    assert calls(records, "SignalEvent")[0].status == EfiStatus.INVALID_PARAMETER


def test_tuples_take_their_length_from_the_selector() -> None:
    """None, one, two or three events to wait for."""
    plain = call("CreateEvent", VALUES["event-type"].index(0))
    waits = [call("WaitForEvent", selector) for selector in range(4)]
    records = records_of(plain, *(step for wait in waits for step in (call("SignalEvent"), wait)))
    assert [len(record.arguments[0]) for record in calls(records, "WaitForEvent")] == [0, 1, 2, 3]
    assert [record.status for record in calls(records, "WaitForEvent")] == [
        EfiStatus.INVALID_PARAMETER,
        *[EfiStatus.SUCCESS] * 3,
    ]


def test_buffers_of_services_can_be_freed_by_their_caller() -> None:
    """They are the caller's own: no misuse is recorded."""
    records = records_of(call("ProtocolsPerHandle"), call("FreePool"))
    assert calls(records, "FreePool")[0].status == EfiStatus.SUCCESS
    assert not [record for record in records if record.kind == Kind.MEMORY]


# ---- the other operations -----------------------------------------------------------------------------------------


def test_exit_with_a_fresh_key_ends_the_run() -> None:
    """What comes after it is skipped with the reason."""
    records = records_of(operation("exit"), call("AllocatePool"))
    assert calls(records, "ExitBootServices")[0].status == EfiStatus.SUCCESS
    assert records[-1].kind == Kind.OPERATION
    assert records[-1].status == "the operating system owns the machine"


def test_exit_with_a_stale_key_can_be_tried_again() -> None:
    """The failed attempt, then the successful one."""
    records = records_of(operation("exit", map_key="stale"), operation("exit"))
    assert [record.status for record in calls(records, "ExitBootServices")] == [
        EfiStatus.INVALID_PARAMETER,
        EfiStatus.SUCCESS,
    ]


def test_an_exit_handler_that_allocates_moves_the_key_unseen() -> None:
    """ExitBootServices succeeds, and the key has moved after its check."""
    group = guids.EVENT_GROUP_EXIT_BOOT_SERVICES
    records = records_of(create_event("allocates", context=15, group=group), operation("exit"))
    assert calls(records, "ExitBootServices")[0].status == EfiStatus.SUCCESS
    assert [record.phase for record in records if record.kind == Kind.MAP_KEY][-1] == Phase.EXIT


def test_loader_pages_are_freed_in_reverse() -> None:
    """`free` without pages is skipped."""
    records = records_of(
        operation("allocate", pages=4), operation("allocate", pages=2), *[operation("free") for _ in range(3)]
    )
    assert [record.arguments[1] for record in calls(records, "FreePages")] == [2, 4]
    assert records[-1].status == "the loader holds no pages"


def test_time_lets_timers_come_due() -> None:
    """A relative timer of 1 ms has fired after 100 ms."""
    timer = create_event("returns", event_type=0x80000200)
    records = records_of(timer, call("SetTimer"), operation("time", milliseconds=100))
    assert len(entries(records, "Notify")) == 1


def test_an_armed_failure_fires() -> None:
    """The second allocation is refused, and only that."""
    fail = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES", nth=2)
    records = records_of(fail, *[call("AllocatePool")] * 3)
    assert [record.status for record in calls(records, "AllocatePool")] == [
        EfiStatus.SUCCESS,
        EfiStatus.OUT_OF_RESOURCES,
        EfiStatus.SUCCESS,
    ]
    assert len([record for record in records if record.kind == Kind.INJECTED]) == 1


# ---- driver code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("context", [0, 1])
def test_each_notification_function_runs(name: str, context: int) -> None:
    """It is entered when its event is signalled, whatever it does then."""
    records = records_of(
        create_event("returns"), create_event(name, context=context), call("SignalEvent", 1), call("SignalEvent", 1)
    )
    assert entries(records, "Notify")[0].agent == "caller"


def test_a_notification_frees_what_one_before_allocated() -> None:
    """They share what one agent keeps."""
    records = records_of(
        create_event("allocates", context=1), create_event("frees"), call("SignalEvent"), call("SignalEvent", 1)
    )
    assert calls(records, "FreePool")[0].status == EfiStatus.SUCCESS


def test_an_event_that_signals_itself_ends_by_the_step_budget() -> None:
    """The last record says so, and the trace is kept."""
    records = records_of(create_event("signals_itself"), call("SignalEvent"), call("AllocatePool"))
    assert (records[-1].kind, records[-1].name) == (Kind.STUCK, "step-budget")
    assert not calls(records, "AllocatePool")


def test_nesting_without_end_is_stopped() -> None:
    """A notification that lowers the TPL while it is queued again is entered from inside itself."""
    records = records_of(create_event("lowers"), call("SignalEvent"))
    assert records[-1].kind == Kind.STUCK
    assert records[-1].depth < 200


def test_drivers_start_and_stop_on_the_controller() -> None:
    """Recursively connected: the bus makes a child; disconnecting the controller destroys it, and all is as before."""
    records = records_of(call("ConnectController"), call("DisconnectController"))
    assert [record.status for record in calls(records, "ConnectController")] == [EfiStatus.SUCCESS]
    assert [record.status for record in calls(records, "DisconnectController")] == [EfiStatus.SUCCESS]
    started = [record.agent for record in entries(records, "Start") if record.status == EfiStatus.SUCCESS]
    assert started == ["bus", "manager"]
    assert {record.agent for record in entries(records, "Start")} == {"bus", "manager", "refuser"}
    assert [record.agent for record in entries(records, "Stop")] == ["bus", "manager", "bus"]


def connect_where(install: str) -> tuple[Operation, ...]:
    """Install one more protocol on the controller, connect it, disconnect it."""
    place = VALUES["guid"].index(install)
    return call("InstallProtocolInterface", 1, place), call("ConnectController"), call("DisconnectController")


def test_a_stubborn_driver_stays() -> None:
    """Its Stop is refused, so its protocol cannot be uninstalled."""
    place = VALUES["guid"].index(guids.SIMPLE_NETWORK_PROTOCOL)
    records = records_of(*connect_where(guids.SIMPLE_NETWORK_PROTOCOL), call("UninstallProtocolInterface", 0, place, 0))
    assert ("stubborn", EfiStatus.DEVICE_ERROR) in [(r.agent, r.status) for r in entries(records, "Stop")]
    assert calls(records, "UninstallProtocolInterface")[-1].status == EfiStatus.ACCESS_DENIED


def test_a_child_that_is_held_stays_with_its_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus's Stop is refused while a driver of the child does not let go."""
    monkeypatch.setattr(Driver, "stop", Stubborn.stop)
    records = records_of(call("ConnectController"), call("DisconnectController"))
    assert [(record.agent, record.status) for record in entries(records, "Stop")] == [
        ("bus", EfiStatus.ACCESS_DENIED),
        ("manager", EfiStatus.DEVICE_ERROR),
    ]
    assert calls(records, "DisconnectController")[0].status == EfiStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("failure", "undone"),
    [
        ("InstallProtocolInterface -> EFI_OUT_OF_RESOURCES", ["CloseProtocol"]),
        ("OpenProtocol -> EFI_OUT_OF_RESOURCES", ["UninstallProtocolInterface", "CloseProtocol"]),
    ],
)
def test_a_bus_that_cannot_make_its_child_gives_everything_back(failure: str, undone: list[str]) -> None:
    """Whichever of its two steps fails: what it has done by then is taken back."""
    for nth in range(1, 8):
        records = records_of(operation("fail", call=failure, nth=nth), call("ConnectController"))
        failed = [record for record in entries(records, "Start") if record.agent == "bus" and record.status]
        if failed:
            start = records.index(failed[0])
            end = next(place for place in range(start + 1, len(records)) if records[place].depth <= failed[0].depth)
            inside = [record.name for record in records[start:end] if record.kind == Kind.SERVICE]
            if inside[-len(undone) :] == undone:
                break
    else:
        pytest.fail("no failure was taken back so")


@pytest.mark.parametrize("name", DRIVERS)
def test_a_loaded_image_brings_its_driver_and_can_be_unloaded(name: str) -> None:
    """Its binding is installed by the image itself; all but the stubborn one let themselves be unloaded."""
    handles = len(CoreWorld(scenario(world="core")).seen["handle"])
    records = records_of(call("LoadImage", VALUES["driver"].index(name)), call("UnloadImage", handles))
    assert calls(records, "InstallProtocolInterface")[0].agent == name
    expected = EfiStatus.ACCESS_DENIED if name == "stubborn" else EfiStatus.SUCCESS
    assert calls(records, "UnloadImage")[0].status == expected


@pytest.mark.parametrize(
    "protocol",
    [
        guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL,
        guids.BUS_SPECIFIC_DRIVER_OVERRIDE_PROTOCOL,
        guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL,
    ],
)
def test_override_protocols_can_be_installed_and_are_asked(protocol: str) -> None:
    """The last interface that stands ready at first is an override, which names the bus driver."""
    world = CoreWorld(scenario(world="core"))
    place = len(world.seen["interface"]) - 1
    assert isinstance(world.core.object_at(world.seen["interface"][place], "test"), Override)
    target = world.seen["handle"].index(next(iter(world.core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL))))
    on = target + 1 if protocol == guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL else 1
    install = call("InstallProtocolInterface", on, VALUES["guid"].index(protocol), 0, place)
    records = records_of(install, call("ConnectController"))
    assert {record.agent for record in records if record.name in ("GetDriver", "GetVersion")} == {"override"}
