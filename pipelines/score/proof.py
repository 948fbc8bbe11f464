"""Members in = rows out, each exactly once: checked for every unit and for the whole before anything is published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from pipelines.storage import Storage

_MODULUS = 1 << 128
_IDS_PER_PASS = 20_000_000  # 16 bytes each: one pass holds at most 320 MB


@dataclass
class Tally:
    """A count and an order-free sum of image ids, so that two sets are compared without sorting either."""

    members: int = 0
    id_sum: int = 0

    def add(self, image_id: str) -> None:
        """Count one member."""
        self.members += 1
        self.id_sum = (self.id_sum + int(image_id, 16)) % _MODULUS

    def merge(self, other: Tally) -> None:
        """Count another tally's members as well."""
        self.members += other.members
        self.id_sum = (self.id_sum + other.id_sum) % _MODULUS


def check_unit(read: Tally, written: Iterable[str], where: str) -> None:
    """Compare what was read from the source with ids found elsewhere: in the listing, in the written file.

    Raises:
        DataError: a member was lost, doubled or exchanged.
    """
    found = Tally()
    for image_id in written:
        found.add(image_id)
    if found != read:
        raise DataError(
            f"{read.members} members were read, and {found.members} stand against them"
            if found.members != read.members
            else f"the {read.members} members that were read are not the {found.members} that stand against them",
            where=where,
            mend="run the same command again; the unit is scored anew. If it happens again, please report it",
        )


def check_whole(store: Storage, paths: list[str], read: Tally, listed: int | None = None) -> None:
    """Check that the files hold each member that was read exactly once, and no other row.

    Args:
        store: the storage that holds the files.
        paths: every file that is about to be published.
        read: the tally of members as read from the source.
        listed: the number of members in the source's listing, where the listing knows it.

    Raises:
        DataError: the law does not hold; nothing may be published.
    """
    if listed is not None and listed != read.members:
        raise DataError(
            f"the source lists {listed} members but {read.members} were read",
            where=store.uri,
            mend="check that nothing changes the source meanwhile, then run the same command again",
        )
    found = Tally()
    doubled = 0
    passes = max(1, math.ceil(read.members / _IDS_PER_PASS))
    for turn in range(passes):
        seen = _ids(store, paths, turn, passes, found)
        doubled += len(seen) - _count_unique(seen)
    if doubled:
        raise DataError(
            f"{doubled} rows stand for members that another row stands for",
            where=store.uri,
            mend="please report it",
        )
    if found != read:
        raise DataError(
            f"{read.members} members were read but {found.members} rows were written, or not for the same members",
            where=store.uri,
            mend="run the same command with another --out; if it happens again, please report it",
        )


def _ids(store: Storage, paths: list[str], turn: int, passes: int, found: Tally) -> np.ndarray:
    """Return the ids of one pass as pairs of 64-bit integers; the first pass also tallies all of them."""
    import numpy as np

    parts = []
    for path in paths:
        for ids in read_ids(store, path):
            raw = np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").reshape(-1, 2)
            if turn == 0:
                found.members += len(ids)
                found.id_sum = (found.id_sum + _sum(raw)) % _MODULUS
            parts.append(raw[raw[:, 1] % passes == turn] if passes > 1 else raw)
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=">u8")


def read_ids(store: Storage, path: str) -> Iterator[list[str]]:
    """Yield the image ids of one file, a row group at a time."""
    import pyarrow.parquet as pq

    with store.open_file(path) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        for group in range(table.num_row_groups):
            yield table.read_row_group(group, columns=["image_id"]).column("image_id").to_pylist()


def _sum(raw: np.ndarray) -> int:
    """Return the sum of 128-bit integers given as (high, low) pairs, exactly."""
    import numpy as np

    total = 0
    for column, shift in ((0, 64), (1, 0)):
        words = raw[:, column].astype(np.uint64)
        low = int((words & np.uint64(0xFFFFFFFF)).sum())
        high = int((words >> np.uint64(32)).sum())
        total += ((high << 32) + low) << shift
    return total


def _count_unique(ids: np.ndarray) -> int:
    import numpy as np

    if len(ids) == 0:
        return 0
    order = ids[np.lexsort((ids[:, 1], ids[:, 0]))]
    return 1 + int(np.any(order[1:] != order[:-1], axis=1).sum())
