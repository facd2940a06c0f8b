"""The guest world: real `.efi` drivers, run by a CPU emulator on the boot services of `reference_impl`.

The emulator, the reader of firmware volumes and the disassembler come with the extra `efi`. Nothing else of ebsfuzz
needs them, so a module of this package asks for them when it needs them, with `require`, and never at its top.
"""

from __future__ import annotations

import importlib
from typing import Any


class ExtraMissing(Exception):  # noqa: N818 -- nothing went wrong: something is to be installed
    """A package of the extra `efi` cannot be imported. The message says what to install."""


def require(module: str) -> Any:
    """The module of this name, which comes with the extra `efi`. Raises ExtraMissing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraMissing(
            f"real .efi images need {module.partition('.')[0]}, which comes with the extra 'efi': "
            f"pip install 'ebsfuzz[efi]' ({error})"
        ) from None
