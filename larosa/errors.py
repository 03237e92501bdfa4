"""The base of every error that larosa raises for a reason a user can act on, and the system's errors in words."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FULL = "free some space there, or name another place"
_RIGHTS = "check who owns it and its permissions (ls -ld), or name another place"
_ADVICE = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "this disk is mounted read-only: name another place",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENOENT: "check the path, and that its folder is there",
    errno.ENOTDIR: "a file stands where a folder is expected: remove it or name another place",
    errno.EEXIST: "something else stands there: remove it or name another place",
    errno.EISDIR: "a folder stands where a file is expected: name a file",
    errno.ENAMETOOLONG: "the name is too long: take a shorter one",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk or network drive fails: try another one",
    errno.ESTALE: "the network drive was lost: mount it again",
}
_PLACES = (
    "Records go to output=FOLDER, downloads and converted models to $LAROSA_CACHE, temporary files to $TMPDIR. "
    "What is recorded stays, and the same command goes on from there"
)


class LarosaError(Exception):
    """Says what was wrong, what was expected and what to do; the commands print it without a traceback."""


class ParityError(LarosaError):
    """A sparse model or a decoder does not compute what it must, rounding aside: nothing of it is recorded."""


class ArgumentError(LarosaError, ValueError):
    """An argument of the Python interface is not what is expected."""


def advice(error: OSError) -> str:
    """What helps against this error of the system's."""
    return _ADVICE.get(error.errno or 0, "try again")


def described(error: OSError) -> str:
    """The file, what failed while what was done, and what to do."""
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or str(error) or type(error).__name__
    what = f"{' -> '.join(files)}: {reason}" if files else reason
    return f"{what} (in {_doing(error)}): {advice(error)}. {_PLACES}"


def _doing(error: OSError) -> str:
    """The innermost function of this package's that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)]
    candidates = inside or list(frames)
    return f"{Path(candidates[-1].filename).stem}.{candidates[-1].name}" if candidates else "larosa"
