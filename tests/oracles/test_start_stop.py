"""Start and Stop: what the pairs of `pairs.py` do not show."""

from __future__ import annotations

from oracles import judge
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BUS, Story


def test_the_core_may_stop_a_driver_that_has_left_the_controller_open():
    """It takes the driver for the one that manages it; the driver is told that by another rule."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("OpenProtocol", BUS)
    story.entry("Stop", BUS, EfiStatus.DEVICE_ERROR)
    found = [finding.signature for finding in judge(story.trace)]
    assert found == ["protocol-usage/left-open/XenBusDxe/Start-XENIO"]
