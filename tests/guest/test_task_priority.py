"""RaiseTPL and RestoreTPL as guest code: the same TPLs as from the service, and Python is asked when it matters."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.calling_convention import CallingConvention
from guest.machine import Machine
from guest.task_priority import TaskPriority
from reference_impl.failures import Failures
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core


class Services:
    """The two services over one core, called as a guest calls them."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.core = Core(self.trace, Failures(self.trace, lambda call: False))
        self.machine = Machine()
        self.convention = CallingConvention(self.machine)
        self.python = BootServices(self.core, "guest")
        raise_trap = self.convention.write_trap(lambda new, *_: self.python.raise_tpl(new))
        restore_trap = self.convention.write_trap(lambda old, *_: self.python.restore_tpl(old) or 0)
        self.guest = TaskPriority(self.convention, self.trace, self.core.events, raise_trap, restore_trap)

    def raise_tpl(self, new: int) -> int:
        """Call RaiseTPL."""
        return self.convention.call(self.guest.raise_tpl, new)

    def restore_tpl(self, old: int) -> None:
        """Call RestoreTPL."""
        self.convention.call(self.guest.restore_tpl, old)

    @property
    def recorded(self) -> list[str]:
        """The services that left a record."""
        return [record[5] for record in self.trace.records if record[0] == Kind.SERVICE]


@pytest.fixture
def services():
    """The services of a machine of their own."""
    made = Services()
    yield made
    made.machine.close()


def test_a_lock_leaves_no_record_and_moves_the_tpl(services):
    """RaiseTPL gives the TPL before; both are counted."""
    assert services.raise_tpl(16) == 4
    assert services.trace.tpl == 16
    assert services.raise_tpl(31) == 16
    services.restore_tpl(16)
    services.restore_tpl(4)
    assert (services.trace.tpl, services.recorded, services.guest.count) == (4, [], 4)


@pytest.mark.parametrize("new", [8, 0, 32, 1 << 40])
def test_raising_that_breaks_a_rule_is_asked_in_python(services, new):
    """To a lower TPL, or to one that does not exist."""
    services.raise_tpl(16)
    assert services.raise_tpl(new) == 16
    assert services.recorded == ["RaiseTPL"]
    assert services.trace.tpl == new
    assert services.guest.count == 1


def test_restoring_a_higher_tpl_is_asked_in_python(services):
    """The oracle for task priorities has to see it."""
    services.restore_tpl(16)
    assert (services.recorded, services.trace.tpl) == (["RestoreTPL"], 16)


@pytest.mark.parametrize(("restored", "seen"), [(16, []), (8, []), (4, ["RestoreTPL"])])
def test_notifications_that_wait_run_when_the_tpl_drops_below_them(services, restored, seen):
    """Not before, and then from Python."""
    ran = []
    services.core.events.create(0x200, 8, lambda event, context: ran.append(services.trace.tpl), None, "", "guest")
    event = services.core.events.live()[0].id
    services.raise_tpl(31)
    services.python.signal_event(event)
    services.restore_tpl(restored)
    assert [name for name in services.recorded if name != "SignalEvent"] == seen
    assert ran == ([8] if seen else [])
    assert services.trace.tpl == restored


def test_after_exit_boot_services_every_call_is_asked_in_python(services):
    """There is no service any more, and each use of one is a finding."""
    services.trace.phase = Phase.RUNTIME
    for call in (services.raise_tpl, services.restore_tpl):
        with pytest.raises(Exception, match="EFI_UNSUPPORTED"):
            call(4)
    assert services.recorded == ["RaiseTPL", "RestoreTPL"]


def test_the_tpl_of_python_reaches_the_guest(services):
    """What a service or a notification has set is what guest code finds."""
    services.trace.tpl = 8
    assert services.raise_tpl(16) == 8
