"""Tests that run the shipped drivers need the firmware in the cache, and the extra `efi`."""

from __future__ import annotations

import pytest

from guest import ExtraMissing
from guest.image import Image, ImageError
from guest.world import open_drivers


def need_firmware(design: str = "shipped") -> dict[str, Image]:
    """The drivers of a design; the test is skipped, with the reason, where they cannot be had."""
    pytest.importorskip("unicorn", reason="the extra [efi] is not installed")
    try:
        return open_drivers(design)
    except (ExtraMissing, ImageError) as error:
        pytest.skip(f"no images, run scripts/fetch-firmware: {error}")
