"""A lock that the kernel opens when the thread that holds it ends: before the memory of its process is freed.

It is a robust mutex (pthread_mutexattr_setrobust(3)) in memory that driver and watcher share. A thread of the driver
holds it for as long as it lives. When a process is killed, each of its threads gives up its robust locks first, and the
kernel wakes who waits for them: within a millisecond, where a pidfd takes 25 ms for a program with Qiskit,
and seconds for one with many gigabytes.

It tells of the end of one thread, which may also be an `exec`, or the end of the interpreter. So whoever is woken has
to look at the process. And a thread that can't be woken gives up nothing: this lock makes a death known sooner, and is
never the only way to know of it.

The watcher maps the memory to be read only, and waits for the word of the lock by futex(2): whatever a driver that goes
wild writes there does not touch its watcher. Rejected: a pidfd of a thread (Linux 6.9), which says nothing in time if
that thread happens to be the last to exit; and a pipe or a lock on a file, which close after the memory is freed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from typing import Self

from . import system

_MUTEX_AT = 64
"""Where in the page the mutex is. The page begins with the offset of the mutex's word that names its holder, which
depends on the C library; 0 until somebody holds it."""

_MUTEX_BYTES = 256
"""More than any C library needs, for the mutex or its attributes."""

_SHARED, _ROBUST = 1, 1  # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST

_WAITERS, _HOLDER = 0x80000000, 0x3FFFFFFF
"""The bits of that word: somebody waits; the holder's thread id (the kernel's documentation, "robust futexes")."""

_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221, "s390x": 238}
"""The number of futex(2), for which the C library has no function."""

_FUTEX_WAIT = 0


class RobustLock:
    """One lock, as one of the two processes has it.

    Attributes:
        descriptor: The memory that both share, for the driver to pass on.
    """

    def __init__(self, descriptor: int, protection: int) -> None:
        self.descriptor = descriptor
        self._library = ctypes.CDLL(None, use_errno=True)
        map_memory = self._library.mmap
        map_memory.restype = ctypes.c_void_p
        map_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        # Not by Python's `mmap`, which unmaps it some time: it must stay for as long as a thread holds the lock.
        address = map_memory(None, mmap.PAGESIZE, protection, mmap.MAP_SHARED, descriptor, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap")
        self._address = int(address)
        self._mutex = ctypes.c_void_p(self._address + _MUTEX_AT)
        self._holder: tuple[int, int] | None = None  # process and thread

    # The driver's side

    @classmethod
    def make(cls) -> Self | None:
        """Make one that nobody holds; None where there are none."""
        if not _is_known_here():
            return None
        import fcntl

        try:
            descriptor = os.memfd_create("qx-supervisor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except (AttributeError, OSError):
            return None
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # or a look at it could kill the watcher
            made = cls(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
            made._initialize()
        except (AttributeError, OSError):
            os.close(descriptor)
            return None
        return made

    def _initialize(self) -> None:
        attributes = ctypes.create_string_buffer(_MUTEX_BYTES)
        for error in (
            self._library.pthread_mutexattr_init(attributes),
            self._library.pthread_mutexattr_setpshared(attributes, _SHARED),
            self._library.pthread_mutexattr_setrobust(attributes, _ROBUST),
            self._library.pthread_mutex_init(self._mutex, attributes),
        ):
            if error:
                raise OSError(error, "pthread_mutex_init")

    def close_descriptor(self) -> None:
        """Close the descriptor, once it has been passed on; the lock stays."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def hold(self) -> None:
        """Have this thread hold it until `release` or its own end, which the watcher waits for from now on."""
        if self._library.pthread_mutex_trylock(self._mutex):
            return
        me = threading.get_native_id()
        self._holder = os.getpid(), me
        for offset in range(_MUTEX_AT, _MUTEX_AT + _MUTEX_BYTES, 4):
            if self._word(offset).value & _HOLDER == me:
                # The kernel wakes nobody unless the word says that somebody waits, and the watcher can't write that.
                self._word(offset).value |= _WAITERS
                self._word(0).value = offset
                return

    def release(self) -> None:
        """Let go of it and forget it, if this thread holds it.

        Another thread can't let go of it, nor a forked child: for them the memory stays as it is.
        """
        if self._holder == (os.getpid(), threading.get_native_id()):
            self._library.pthread_mutex_unlock(self._mutex)
            self._holder = None
            self._unmap()

    # The watcher's side

    @classmethod
    def of_driver(cls, descriptor: int) -> Self | None:
        """The driver's, by the descriptor that it passed on, which is closed here; None if it can't be used."""
        try:
            return cls(descriptor, mmap.PROT_READ) if _is_known_here() else None
        except (AttributeError, OSError):
            return None
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a thread holds it, or has held it."""
        return self._place() != 0

    def wait_for_holder(self) -> bool:
        """Wait until the thread that holds it lets go of it, without using the processor; then forget it.

        Returns:
            Whether it let go by its end.
        """
        offset = self._place()
        word = ctypes.c_void_p(self._address + offset)
        try:
            while (seen := self._word(offset).value) & _HOLDER:
                asleep = [ctypes.c_long(_FUTEX[os.uname().machine]), word, _FUTEX_WAIT, ctypes.c_uint32(seen), None]
                if self._library.syscall(*asleep) and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
                    return False
            return bool(seen)  # the kernel leaves a mark there, that its holder has ended
        finally:
            self._unmap()

    def _place(self) -> int:
        """The offset of the word that names the holder, or 0: also if what stands there can be no offset."""
        offset: int = self._word(0).value
        return offset if offset in range(_MUTEX_AT, _MUTEX_AT + _MUTEX_BYTES, 4) else 0

    def _word(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_address(self._address + offset)

    def _unmap(self) -> None:
        self._library.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(mmap.PAGESIZE))


def _is_known_here() -> bool:
    return system.HAS_LINUX and os.uname().machine in _FUTEX and ctypes.sizeof(ctypes.c_void_p) == 8
