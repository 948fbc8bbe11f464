"""A folder of archives (`shard-000000.tar`, `cats.zip`, ...): each is read as it lies, one level deep."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from typing_extensions import override

from pipelines.object_listing import LISTING_THREADS
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id
from pipelines.sources.names import escaped_bytes, labels_and_splits


class ArchivesSource(Source):
    """Members of several archives; the key of one is ARCHIVE!/KEY, with its key inside the archive.

    A folder `train` around archives, or one inside them, is a given split as in a plain folder, and so is the name of
    an archive itself (`train.zip`, `val-000.tar`).
    """

    def __init__(self, uri: str, name: str, archives: Sequence[tuple[str, Source]]) -> None:
        super().__init__(uri, name)
        self._archives = list(archives)
        """(path within the folder, the archive)."""

    @override
    def _list(self) -> Listing:
        entries: list[Entry] = []
        ignored: Counter[str] = Counter()
        faults: list[str] = []
        for number, ((path, _), listing) in enumerate(zip(self._archives, self._listings(), strict=True)):
            ignored.update(listing.ignored)
            faults += [f"{path if self.tells_keys else 'an archive in it'}: {fault}" for fault in listing.faults]
            entries += [self._outer(number, path, entry) for entry in listing.entries]
        named = labels_and_splits([spoken(entry.key) for entry in entries], [bool(entry.reason) for entry in entries])
        labelled = [
            entry._replace(label=entry.label if entry.label is not None else label, given_split=split)
            for entry, (label, split) in zip(entries, named, strict=True)
        ]
        return Listing(tuple(labelled), dict(sorted(ignored.items())), tuple(faults))

    def _listings(self) -> Iterator[Listing]:
        archives = [archive for _, archive in self._archives]
        for archive in archives:
            archive.tells_keys = self.tells_keys
        if "://" not in self.uri:
            yield from map(_listed_once, archives)
            return
        with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="list") as pool:  # each waits for the store
            yield from pool.map(_listed_once, archives)

    def _outer(self, number: int, path: str, entry: Entry) -> Entry:
        inner = escaped_bytes(entry.key) if "name_bytes" in entry.flags else entry.key.encode()
        name = path.encode(errors="surrogateescape") + b"!/" + inner
        return entry._replace(
            key=f"{path}!/{entry.key}",
            image_id=image_id(self.name, name, entry.occurrence),
            detail=(number, *entry.detail),
        )

    @override
    def listing_digest(self) -> str:
        lines = [f"{path}\0{archive.listing_digest()}" for path, archive in self._archives]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    @override
    def units(self) -> list[Unit]:
        by_archive: dict[int, dict[int, Entry]] = {}
        for entry in self.listing().entries:
            mine = by_archive.setdefault(entry.detail[0], {})
            mine[len(mine)] = entry
        units: list[Unit] = []
        for number, (_, archive) in enumerate(self._archives):
            outer = by_archive.get(number, {})
            places = {entry.image_id: place for place, entry in enumerate(archive.listing().entries)} if outer else {}
            for unit in archive.units() if outer else ():
                units.append(Unit(len(units), tuple(outer[places[entry.image_id]] for entry in unit.entries)))
        return units

    @override
    def tokens(self) -> list[str]:
        filled = {entry.detail[0] for entry in self.listing().entries}
        return [token for n, (_, archive) in enumerate(self._archives) if n in filled for token in archive.tokens()]

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        number = unit.entries[0].detail[0]  # a unit lies in one archive
        inner = tuple(entry._replace(detail=entry.detail[1:]) for entry in unit.entries)
        return self._archives[number][1].open(Unit(unit.index, inner))


def _listed_once(archive: Source) -> Listing:
    """Return an archive's listing, which may be empty, and keep it: units and tokens ask the archive for it again."""
    if archive._listing is None:
        archive._listing = archive._list()
    return archive._listing


def spoken(key: str) -> str:
    """Return a key as a path with the archive's name as a folder: `a/val-000.tar!/x.jpg` is `a/val/x.jpg`."""
    outer, _, inner = key.partition("!/")
    folder, _, file = outer.rpartition("/")
    return f"{folder}/{file.partition('.')[0].rpartition('-')[0] or file.partition('.')[0]}/{inner}".lstrip("/")
