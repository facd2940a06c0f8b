"""Messages of the xenstore protocol: types, header, errors, limits.

Source: Xen, public header io/xs_wire.h, and docs/misc/xenstore.txt.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER_SIZE = 16
PAYLOAD_MAX = 4096
ABSOLUTE_PATH_MAX = 3072
RELATIVE_PATH_MAX = 2048

_HEADER = struct.Struct("<4I")


class MessageType(IntEnum):
    """What a message asks or answers. A request and its answer have the same type, unless the answer is ERROR."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21


TYPE_NAMES: dict[int, str] = {int(message_type): message_type.name for message_type in MessageType}

ERRORS: dict[str, int] = {
    "EINVAL": 22,
    "EACCES": 13,
    "EEXIST": 17,
    "EISDIR": 21,
    "ENOENT": 2,
    "ENOMEM": 12,
    "ENOSPC": 28,
    "EIO": 5,
    "ENOTEMPTY": 39,
    "ENOSYS": 38,
    "EROFS": 30,
    "EBUSY": 16,
    "EAGAIN": 11,
    "EISCONN": 106,
    "E2BIG": 7,
}
"""The names that an ERROR answer may carry, and their errno on Linux."""


def pack(message_type: int, request_id: int, transaction_id: int, payload: bytes) -> bytes:
    """A whole message: header and payload."""
    return _HEADER.pack(message_type, request_id, transaction_id, len(payload)) + payload


def unpack_header(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int, int, int]:
    """Type, request id, transaction id and payload length of the message whose header begins at `offset`."""
    return _HEADER.unpack_from(data, offset)
