"""Which machine this is and which of its boots, on macOS, from its C library."""

from __future__ import annotations

import ctypes
import uuid

_TEXT_SIZE = 256


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def boot_session() -> str:
    """The id of this boot (sysctl(3), `kern.bootsessionuuid`); "" if it is not told. Sleep does not change it."""
    try:
        library = ctypes.CDLL(None)
        text, size = ctypes.create_string_buffer(_TEXT_SIZE), ctypes.c_size_t(_TEXT_SIZE)
        if library.sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, ctypes.c_size_t(0)):
            return ""
        return str(uuid.UUID(text.value.decode("ascii")))
    except (AttributeError, OSError, ValueError):
        return ""


def machine() -> str:
    """The id of this machine's hardware (gethostuuid(2)), as 32 hexadecimal digits; "" if it is not told."""
    try:
        found = (ctypes.c_ubyte * 16)()
        if ctypes.CDLL(None).gethostuuid(found, ctypes.byref(_Timespec(1, 0))):
            return ""
        return uuid.UUID(bytes=bytes(found)).hex
    except (AttributeError, OSError):
        return ""
