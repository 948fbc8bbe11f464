"""Which command a run's folder belongs to: the one that began to train in it last.

No lock: a command that was killed could not release it. Whoever begins writes a note with a token of its own over the
one that stands, and looks at it before it writes and once more when it has written: a command that finds another's
token there stops. Order is that of the writes, so clocks do not matter. Workers that Ray replaces carry the token of
their driver, and so never take a run back from a newer command. Whatever else a driver and its workers leave each other
in the folder has the token in its name, so that no command ends by the word of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.errors import NotFound, StorageError, Superseded
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.tracking import RunLog

OWNER = "_work/owner.json"
FORMAT_VERSION = 1
_LOOK_S = 0.1


def claim_run(run: Storage, token: str = "") -> str:
    """Make the run this command's, whoever had it; return the token that says so. Claim before reading checkpoints.

    Raises:
        StorageError: the note cannot be written.
    """
    token = token or secrets.token_hex(16)
    note = {
        "format_version": FORMAT_VERSION,
        "token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_s": round(time.time(), 3),
    }
    run.put(OWNER, json.dumps(note, indent=1).encode())
    return token


class Claim:
    """A command's claim on a run: a token, and the note that says that the run is this command's.

    Its workers carry the token from the start, and wait for the note. That is written when nothing is left that may
    refuse the command, since it stops whoever trains there.

    Args:
        run: storage of the run.
    """

    def __init__(self, run: Storage) -> None:
        self.token = secrets.token_hex(16)
        self._run = run
        self._is_made = False

    @property
    def is_made(self) -> bool:
        """Whether the run has been this command's."""
        return self._is_made

    def make(self, notes: Collection[str] = ()) -> None:
        """Take the run, and delete what earlier commands have left in these notes.

        Raises:
            StorageError: it cannot be written.
        """
        drop_notes(self._run, notes, but=self.token)
        claim_run(self._run, self.token)
        self._is_made = True

    def find_successor(self) -> Superseded | None:
        """Return what there is to say if a newer command has the run by now."""
        return find_successor(self._run, self.token) if self._is_made else None


@contextlib.contextmanager
def leaving_to_successor(log: RunLog, find: Callable[[], Superseded | None]) -> Iterator[None]:
    """Leave an MLflow run as it is where the work within fails, or is called off, after a newer command took it.

    Args:
        log: of the run.
        find: says whether one has.
    """
    try:
        yield
    except BaseException:
        if find():
            log.leave()
        raise


def await_claim(run: Storage, token: str, *, patience_s: float = 30.0) -> None:
    """Return when the run is the command's of this worker, or is not so for long.

    Others' notes say nothing yet: they may be those that the command is about to replace.

    Args:
        run: storage of the run.
        token: the command's.
        patience_s: seconds to wait; a note that somebody has deleted or replaced does not come.
    """
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        with contextlib.suppress(NotFound, StorageError, ValueError, KeyError, TypeError):
            if json.loads(run.read(OWNER))["token"] == token:
                return
        time.sleep(_LOOK_S)


def check_owner(run: Storage, token: str) -> None:
    """Refuse to go on where a newer command has claimed the run; a note that is gone or unreadable names nobody.

    Raises:
        Superseded: the run is another command's, which is named.
        StorageError: it cannot be known.
    """
    try:
        note = json.loads(run.read(OWNER))
        if note["token"] != token:
            raise superseded(run, _describe(note))
    except (NotFound, ValueError, KeyError, TypeError, OverflowError):
        return


def find_successor(run: Storage, token: str) -> Superseded | None:
    """Return what there is to say if the run is a newer command's; storage that is away says nothing."""
    try:
        check_owner(run, token)
    except Superseded as error:
        return error
    except StorageError:
        pass
    return None


def note_path(note: str, token: str) -> str:
    """Return where a command's drivers and workers leave each other a note: commands have each their own."""
    return note.replace(".json", f"-{token}.json") if token else note


def drop_notes(run: Storage, notes: Collection[str], *, but: str = "") -> None:
    """Delete the notes of all commands, but not of the one with the token `but`.

    Raises:
        StorageError: one cannot be deleted.
    """
    stems = tuple(note.removesuffix(".json") for note in notes)
    kept = {note_path(note, but) for note in notes if but}
    run.delete(*(file.path for file in run.list("_work") if file.path.startswith(stems) and file.path not in kept))


def superseded(run: Storage, by: str = "started later") -> Superseded:
    """Return what a command says that a newer one has taken its run from."""
    return Superseded(
        f"another command trains in this folder now ({by}); this one stops",
        where=run.uri,
        mend="let that one finish, or give this one another --out",
    )


def _describe(note: dict[str, Any]) -> str:
    begun = datetime.fromtimestamp(float(note["started_s"]), UTC)
    return f"process {note['pid']} on {note['host']}, started {begun:%Y-%m-%d %H:%M:%S} UTC"
