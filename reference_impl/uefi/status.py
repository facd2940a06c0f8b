"""EFI_STATUS, and the exception that carries one through Python code."""

from __future__ import annotations

from enum import IntEnum

_ERROR = 1 << 63


class EfiStatus(IntEnum):
    """Status codes with their 64-bit values (UEFI 2.10 appendix D)."""

    SUCCESS = 0
    LOAD_ERROR = _ERROR | 1
    INVALID_PARAMETER = _ERROR | 2
    UNSUPPORTED = _ERROR | 3
    BAD_BUFFER_SIZE = _ERROR | 4
    BUFFER_TOO_SMALL = _ERROR | 5
    NOT_READY = _ERROR | 6
    DEVICE_ERROR = _ERROR | 7
    WRITE_PROTECTED = _ERROR | 8
    OUT_OF_RESOURCES = _ERROR | 9
    NOT_FOUND = _ERROR | 14
    ACCESS_DENIED = _ERROR | 15
    NO_RESPONSE = _ERROR | 16
    TIMEOUT = _ERROR | 18
    NOT_STARTED = _ERROR | 19
    ALREADY_STARTED = _ERROR | 20
    ABORTED = _ERROR | 21
    PROTOCOL_ERROR = _ERROR | 24
    SECURITY_VIOLATION = _ERROR | 26

    @property
    def is_error(self) -> bool:
        """Whether the highest bit is set, as EFI_ERROR() tells."""
        return self >= _ERROR

    def __str__(self) -> str:
        """The specification's spelling: EFI_NOT_FOUND."""
        return f"EFI_{self.name}"

    __repr__ = __str__


class EfiError(Exception):
    """A refusal that a caller of firmware sees. Services raise it; `Core.enter` and the guest bridge make it a status again."""

    def __init__(self, status: EfiStatus) -> None:
        super().__init__(status)
        self.status = status
