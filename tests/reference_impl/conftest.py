"""One firmware core for a test, and the boot services of one image on it."""

from __future__ import annotations

import pytest

from reference_impl.failures import Failures
from reference_impl.trace import Trace
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core


def make_core() -> Core:
    """A core of its own, on which any armed failure may fire."""
    trace = Trace()
    return Core(trace, Failures(trace, lambda call: True))


@pytest.fixture
def core() -> Core:
    """A fresh firmware core."""
    return make_core()


@pytest.fixture
def boot_services(core: Core) -> BootServices:
    """The boot services of the image "Driver" on the fixture `core`."""
    return BootServices(core, "Driver", 0)
