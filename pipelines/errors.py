"""The errors a user can meet, each saying what, where and how to mend, and the exit code it stands for."""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """Base of every error that is a user's to mend; the command line shows it without a traceback.

    Args:
        what: the fault in one sentence, with the value received.
        where: file, line, object or stage; empty when `what` says it all.
        mend: what to do about it, preferably something to paste.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        lines = [f"{type(self).__name__}: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries in Ray; keyword arguments would be lost by the default protocol.
        return _rebuild, (type(self), self.what, self.where, self.mend)


def _rebuild(kind: type[PipelineError], what: str, where: str, mend: str) -> PipelineError:
    return kind(what, where=where, mend=mend)


class ConfigError(PipelineError):
    """A configuration that cannot be run: unknown key, wrong type, impossible value."""

    exit_code = 2


class InputError(PipelineError):
    """An input found missing or unreadable, or an output place that holds something else, before work starts."""

    exit_code = 2


class DataError(PipelineError):
    """Data that failed while the work was running, for instance more bad images than the budget allows."""

    exit_code = 3


class Unfinished(PipelineError):
    """Work that stopped in order before its end, as asked; the same command goes on with it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: not done, and trying again is the way to get it done


class StorageError(PipelineError):
    """Storage that refused or could not be reached."""

    exit_code = 4


class NotFound(StorageError):
    """An object that is not there."""


class AlreadyExists(StorageError):
    """A create-if-absent that found the object standing."""


class RegistryError(PipelineError):
    """The MLflow store or registry refused, or holds something unexpected."""

    exit_code = 4


class ClusterError(PipelineError):
    """A Ray cluster that cannot be reached or cannot fit the job."""

    exit_code = 4


class Superseded(ClusterError):
    """Work that a newer command on the same output folder has taken over."""
