"""USB host controllers, as far as drivers look before they start."""

from __future__ import annotations

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.usb_controllers import RESET, RUN, ehci_controller, xhci_controller


@pytest.mark.parametrize(
    ("make", "command", "halted"), [(xhci_controller, 0x40, 1), (ehci_controller, 0x20, 1 << 12)], ids=["xhci", "ehci"]
)
def test_status_follows_the_command(make, command, halted):
    """It halts at once, and a reset is over at once and leaves it halted."""
    controller = make(7)
    assert controller.location == (0, 0, 7, 0)
    assert controller.read_register(0, 0, 1) == command
    assert controller.read_register(0, command + 4, 4) == halted
    controller.write_register(0, command, 4, RUN)
    assert controller.read_register(0, command + 4, 4) == 0
    controller.write_register(0, command, 4, RUN | RESET)
    assert controller.read_register(0, command, 4) == 0
    assert controller.read_register(0, command + 4, 4) == halted


def test_ehci_says_which_schedules_run():
    """Bits 4 and 5 of the command show in bits 14 and 15 of the status (EHCI 1.0 §2.3.2)."""
    controller = ehci_controller(7)
    controller.write_register(0, 0x20, 4, RUN | 0x30)
    assert controller.read_register(0, 0x24, 4) == 0xC000


def test_class_tells_what_it_is():
    """Drivers look for the class code."""
    assert [make(7).read_config(9, 3) for make in (xhci_controller, ehci_controller)] == [0x0C0330, 0x0C0320]
