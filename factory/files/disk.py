"""A disk that is full, read-only or gone becomes a message: what is finished stays, and the same command goes on."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from factory.errors import FactoryError

_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Not that there is no such file: this program may miss one by a fault of its own.
_MENDABLE = (*FULL, *_DENIED, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class DiskError(FactoryError):
    """Files cannot be written or read: whatever else is tried in that folder fails likewise."""


def free_bytes(folder: Path) -> int | None:
    """Free disk where a folder is or would be; None where the system does not say."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def told_of_the_disk(error: Exception) -> DiskError | None:
    """An error of the system that a user can mend, wherever it came from; None for any other error."""
    return _told(error, Path("stdout")) if isinstance(error, OSError) and error.errno in _MENDABLE else None


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raises DiskError where writing or reading in `folder` fails, in Python, in safetensors or in torch's writer."""
    try:
        yield
    except OSError as error:
        raise _told(error, folder) from error
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # its writer is in Rust, and this is all that it tells
        if number is None:
            raise DiskError(_other(folder, str(error))) from error
        code = int(number[1])
        raise _told(OSError(code, os.strerror(code)), folder) from error
    except RuntimeError as error:  # torch's writer, on its way out of a failure of the file below it
        cause = error.__context__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise _told(cause, folder) from error


def _told(error: OSError, folder: Path) -> DiskError:
    place, number, reason = Path(str(error.filename or folder)), error.errno, error.strerror or str(error)
    if number is None and (found := re.search(r"\[Errno (\d+)\]", reason)):  # shutil.copytree lists what failed as text
        number, reason = int(found[1]), os.strerror(int(found[1]))
    if number == errno.ENAMETOOLONG:
        return DiskError(
            f"{str(place)[:60]}...: a name of {len(place.name)} characters is too long; give a shorter one"
        )
    if number in _NO_FOLDER:
        return DiskError(_no_folder(place))
    return DiskError(_full(place, reason) if number in FULL else _other(place, reason))


def _no_folder(place: Path) -> str:
    return f"{place}: a file stands where a folder is to be; name another folder"


def _other(place: Path, reason: str) -> str:
    return f"{place}: {reason}; mend that and run the same command again"


def _full(place: Path, reason: str) -> str:
    return f"{place}: {reason}: make room there and run the same command again; what is finished is kept"
