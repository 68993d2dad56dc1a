"""One process at a time in a directory."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator

from bayesian_active_learning.history.errors import HistoryError

LOCK = ".lock"
_PAUSE = 0.05  # seconds between attempts


@contextlib.contextmanager
def cell_lock(directory: str | os.PathLike, *, wait: float = 0.0) -> Iterator[None]:
    """Holds `directory` (made if missing) for this process.

    The kernel frees the lock when the process ends, `kill -9` included, so a stale
    one never blocks. Raises HistoryError with the holder's process id when another
    still has it after `wait` seconds, and where the lock file cannot be made.
    """
    path = pathlib.Path(directory) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(path, time.monotonic() + wait)
    except OSError as error:
        raise HistoryError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _locked(path: pathlib.Path, deadline: float) -> int:
    import fcntl  # not on Windows, where only reading a history works

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who had it removes the file: then this lock is on no file at all.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            if time.monotonic() >= deadline:
                os.close(handle)
                raise HistoryError(
                    f"{path.parent} is in use by process {holder}; wait for it or stop it, "
                    f"or choose another --output-dir"
                ) from None
            time.sleep(_PAUSE)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
