"""Where the ledger's file is, and that nobody else can write to it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from .. import system
from .errors import LedgerError

# Where several processes can share memory through a file, which write-ahead logging needs: by `f_type` of statfs(2). A
# list of those known to be local, not of those known to be remote (nfs, cifs, lustre, gpfs, ceph, 9p, virtiofs,
# anything of fuse, ...): what is on neither list goes the way that works everywhere.
LOCAL_FILE_SYSTEMS = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x2FC12FC1,  # zfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x3153464A,  # jfs
        0x52654973,  # reiserfs
        0xF15F,  # ecryptfs
        0x794C7630,  # overlay
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
    }
)


@dataclass(frozen=True)
class File:
    """The ledger's file, made and safe to open.

    Attributes:
        path: Its path.
        is_local: Whether it is on a file system of this machine.
        inode: Tells it from one that takes its place.
    """

    path: Path
    is_local: bool
    inode: int


def state_directory() -> Path:
    """The directory of the ledger: `QX_STATE_DIR`, else the user's state directory for this program.

    For the caller: a watcher is told, since it has neither the caller's environment nor its `platformdirs`.

    Raises:
        LedgerError: The user has no home directory.
    """
    try:
        if chosen := os.environ.get("QX_STATE_DIR"):
            return Path(chosen).expanduser().absolute()
        from platformdirs import user_state_path

        # It leaves a "~" where there is no home, and that would be a folder of this name.
        return user_state_path("qx_supervisor").expanduser().absolute()
    except RuntimeError as error:
        raise LedgerError("There is no home directory for the ledger: set QX_STATE_DIR to a directory.") from error


def prepare(directory: Path, host: str) -> File:
    """Make the directory and the file where they are not there.

    Args:
        directory: The state directory.
        host: This host's name. On a network file system every host has a file of its own, because locks and shared
            memory do not reach from one to the other.

    Raises:
        LedgerError: They can't be made, or someone else could write to them.
    """
    if reason := system.why_no_watcher():
        raise LedgerError(f"There is no ledger here: {reason}.")
    try:
        _make_directory(directory)
        _check_directory(directory)
        is_local = _is_local(directory)
        name = "ledger.db" if is_local else f"ledger-{re.sub(r'[^A-Za-z0-9.-]', '_', host) or 'unnamed'}.db"
        path = directory / name
        inode = _make_file(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise LedgerError(f"The ledger can't be kept in {directory}: {reason}.") from error
    return File(path, is_local, inode)


def _make_directory(directory: Path) -> None:
    """Make it and its parents, for the user only, and last through a power failure."""
    if directory.exists():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(0o700)  # not `parents=True`: that gives the parents whatever mode the umask leaves
    with contextlib.suppress(OSError):  # a parent that can't be read, or synchronized, is no reason to do without
        descriptor = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_directory(directory: Path) -> None:
    status = directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise LedgerError(f"The ledger can't be kept in {directory}: it is not a directory.")
    # Whoever can write to the directory can put a file in the ledger's place, or a journal beside it.
    if status.st_uid != os.geteuid():
        raise LedgerError(f"The ledger is not kept in {directory}: the directory belongs to another user.")
    if status.st_mode & 0o022:
        raise LedgerError(f"The ledger is not kept in {directory}: others can write to it (chmod 700 helps).")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise LedgerError(f"The ledger can't be kept in {directory}: it can't be written to.")


def _make_file(path: Path) -> int:
    # Never open and close the file here: the close would drop every lock that this process has on it, of other
    # connections too (fcntl(2)). mknod(2) makes a file without opening it.
    with contextlib.suppress(FileExistsError):
        if system.HAS_LINUX:
            os.mknod(path, 0o600 | stat.S_IFREG)
        elif not path.exists():
            _make_file_by_link(path)
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"The ledger {path} is not a regular file: move it away, and a new one is made.")
    if status.st_uid != os.geteuid():
        raise LedgerError(f"The ledger {path} belongs to another user: move it away, and a new one is made.")
    if status.st_mode & 0o077:
        path.chmod(0o600)
    return status.st_ino


def _make_file_by_link(path: Path) -> None:
    """Make a file that nobody opens under its name: elsewhere mknod(2) is for the administrator, and not for files."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        os.link(draft, path)
    finally:
        draft.unlink()


def _is_local(directory: Path) -> bool:
    """Whether a directory is on a file system of this machine, as far as that is known."""
    return _file_system(directory) in LOCAL_FILE_SYSTEMS if sys.platform.startswith("linux") else _is_on_disk(directory)


def _is_on_disk(directory: Path) -> bool:
    import psutil

    device = directory.stat().st_dev
    for partition in psutil.disk_partitions(all=True):
        with contextlib.suppress(OSError):
            if os.stat(partition.mountpoint).st_dev == device:  # noqa: PTH116
                return "local" in partition.opts.split(",")  # macOS and the BSDs say so (MNT_LOCAL)
    return False


def _file_system(directory: Path) -> int:
    """The type of the file system of a directory (`f_type` of statfs(2)), or 0 where it is not known."""
    # The kernel's own word. /proc/self/mountinfo lists what over-mounts hide, too, and the mount's id, which would tell
    # them apart, is in /proc/self/fdinfo, which older kernels close to a process that is not dumpable, as a watcher.
    # Then the watcher and a later process would have different files.
    import ctypes

    buffer = ctypes.create_string_buffer(512)  # the structure has 120 bytes, and begins with the type, a long
    if ctypes.CDLL(None).statfs(os.fsencode(directory), buffer) != 0:
        return 0
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
