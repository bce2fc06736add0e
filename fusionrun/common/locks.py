"""One process at a time: locks on files."""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_HELD_BY_OTHERS = {errno.EWOULDBLOCK, errno.EACCES}  # the latter on SMB
# Lustre without `-o flock`, NFS without its lock daemon, some FUSE file systems
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class Lock:
    """`flock` on a file of its own, which is created if needed and may say who holds it.

    The kernel drops the lock of a killed process, so none is ever stale. Where the file system has
    no locks, everybody gets it: `lock_problem` says so. Raises OSError where the file cannot be
    opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Whether it's held now; another mode than before replaces that. Raises OSError."""
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_OTHERS:
                return False
            if error.errno not in _NO_LOCKS:
                error.filename = str(self.path)
                raise
        return True

    def read(self) -> str:
        """What its holder wrote."""
        return os.pread(self._descriptor, 1 << 16, 0).decode(errors="replace").strip()

    def write(self, text: str) -> None:
        os.pwrite(self._descriptor, text.encode(), 0)  # first: a reader never finds nothing
        os.ftruncate(self._descriptor, len(text.encode()))

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


@contextlib.contextmanager
def locked(
    path: Path, *, shared: bool = False, waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the lock on the file `path`; `waiting` is called once if another process holds it.

    Raises OSError as `Lock`.
    """
    lock = Lock(path)
    try:
        if not lock.take(shared=shared):
            waiting()
            lock.take(shared=shared, wait=True)
        yield
    finally:
        lock.close()


def lock_problem(folder: Path) -> str:
    """Why files in `folder`, which need not be there yet, can't be locked; "" where they can.

    Nothing is left behind. What can't be written is no matter of locks: "".
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return f"the file system of {folder} has no file locks ({error.strerror})"
    return ""
