"""The Source protocol: list members, cut them into units, open a unit; ids that survive a move of the source."""

from __future__ import annotations

import abc
import contextlib
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipelines.errors import InputError
from pipelines.sources.addresses import base_of
from pipelines.sources.labels import Label, Task, as_task, resolve_task
from pipelines.sources.names import ignored_as, is_plain, labels_and_splits, name_fault, readable_key


class Entry(NamedTuple):
    """One listed member: who it is, what its name says, and where its bytes are. Plain, so that it travels."""

    key: str
    occurrence: int
    image_id: str
    size: int
    label: Label
    given_split: str | None
    reason: str = ""
    """Why it cannot be read; empty when it can be tried."""
    message: str = ""
    flags: tuple[str, ...] = ()
    offset: int = 0
    extent: int = 0
    detail: tuple[int, ...] = ()
    """What the source needs to unpack it."""
    carried: tuple[str | None, ...] = ()
    """Values of the source's `carried` columns."""


@dataclass(frozen=True)
class Unit:
    """The piece of input that one task reads, transforms and writes; its entries are in writing order."""

    index: int
    entries: tuple[Entry, ...]

    def to_text(self) -> str:
        """Return the unit as JSON, so that it travels as one cell of a table."""
        return json.dumps([self.index, self.entries])

    @staticmethod
    def from_text(text: str) -> Unit:
        """Return the unit that `to_text` wrote."""
        index, rows = json.loads(text)
        return Unit(index, tuple(Entry._make(tuple(v) if isinstance(v, list) else v for v in row) for row in rows))


@dataclass(frozen=True)
class Member:
    """One image of a source: its bytes, or the reason why it is refused, or both where its bytes are not at fault."""

    key: str
    occurrence: int
    image_id: str
    data: bytes | None
    label: Label
    given_split: str | None
    reason: str | None
    message: str
    flags: tuple[str, ...]
    size: int
    carried: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    `ignored` counts what is no image by its name; `faults` are sentences on an archive that is cut or damaged, each
    of which also has an entry with a reason; `warnings` are sentences on what is odd and was taken all the same.
    """

    entries: tuple[Entry, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a source's own format says of one member, before names are judged."""

    name: bytes
    size: int
    offset: int = 0
    extent: int = 0
    detail: tuple[int, ...] = ()
    reason: str = ""
    message: str = ""
    flags: tuple[str, ...] = ()
    text: str = ""
    """The name as text where it is not UTF-8 but its encoding is known."""


def image_id(source_name: str, key: bytes, occurrence: int) -> str:
    """Return the id of an image: the same wherever its source lies, and the same in datasets and predictions."""
    return hashlib.sha256(b"%b\0%b\0%d" % (source_name.encode(), key, occurrence)).hexdigest()[:32]


def make_listing(source_name: str, members: Sequence[Found], faults: Sequence[str] = ()) -> Listing:
    """Judge names, number equal keys by their order, and make ids; members must come in the order of the source."""
    ignored: Counter[str] = Counter()
    kept: list[tuple[Found, str, tuple[str, ...], str, str]] = []
    for found in members:
        if is_plain(found.name):
            kept.append((found, found.name.decode(), found.flags, found.reason, found.message))
            continue
        key, is_escaped = (found.text, True) if found.text else readable_key(found.name)
        if not found.reason and (kind := ignored_as(key)):
            ignored[kind] += 1
            continue
        reason, message = (found.reason, found.message) if found.reason else name_fault(found.name)
        kept.append((found, key, (*found.flags, "name_bytes") if is_escaped else found.flags, reason, message))
    twice = {name for name, number in Counter(each[0].name for each in kept).items() if number > 1}
    seen: Counter[bytes] = Counter()
    entries = []
    labels = labels_and_splits([each[1] for each in kept], [bool(each[3]) for each in kept])
    for (found, key, flags, reason, message), (label, given_split) in zip(kept, labels, strict=True):
        name, size, offset, extent, detail = found[:5]
        occurrence = 0
        if name in twice:
            occurrence = seen[name]
            seen[name] += 1
            flags = (*flags, "dup_name")
        made = image_id(source_name, name, occurrence)
        # by place: naming the fields takes twice as long, and there may be millions
        entries.append(
            Entry(key, occurrence, made, size, label, given_split, reason, message, flags, offset, extent, detail)
        )
    return Listing(tuple(entries), dict(sorted(ignored.items())), tuple(faults))


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles among millions of new entries, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Source(abc.ABC):
    """A named place that holds images. It pickles without its listing: a unit carries the entries it needs."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self.carried: tuple[str, ...] = ()
        """Names of further columns that travel into the dataset."""
        self.task: Task = "auto"
        """What its labels are; after listing it is single or multi."""
        self.tells_keys = True
        """Whether its warnings and errors may name images; a key may name a person, and these are logged."""
        self._listing: Listing | None = None

    @property
    def root(self) -> str:
        """Return the place that every node must see; it differs from the address where that is a pattern."""
        return base_of(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listing": None}

    def listing(self) -> Listing:
        """Return what the source holds, listed once.

        Raises:
            InputError: it holds no image, or it is not what it seems.
        """
        if self._listing is None:
            with _without_collector():
                listing = self._labelled_as(self._list())
            if not listing.entries:
                raise no_images(self.uri, listing.ignored)
            self._listing = listing
        return self._listing

    def _labelled_as(self, listing: Listing) -> Listing:
        """Return the listing with labels as the task takes them, having settled which that is."""
        asked = self.task
        self.task = resolve_task([entry.label for entry in listing.entries], asked, self.uri)
        if asked != "unlabelled" and self.task == "single":
            return listing
        form: Task = "unlabelled" if asked == "unlabelled" else self.task
        entries = tuple(entry._replace(label=as_task(entry.label, form)) for entry in listing.entries)
        return replace(listing, entries=entries)

    @abc.abstractmethod
    def _list(self) -> Listing:
        """List the members."""

    @abc.abstractmethod
    def listing_digest(self) -> str:
        """Return a digest that changes when a member is added, removed or changed, and not when the source moves."""

    @abc.abstractmethod
    def units(self) -> list[Unit]:
        """Return the listed members as units; a function of the listing alone."""

    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        """Return some of the listed entries as units; here each unit of `units()` that holds any of them."""
        wanted = {entry.image_id: entry for entry in entries}
        parts = [tuple(wanted[e.image_id] for e in unit.entries if e.image_id in wanted) for unit in self.units()]
        return [Unit(index, part) for index, part in enumerate(part for part in parts if part)]

    def tokens(self) -> list[str]:
        """Return what the listing knows of each entry's content, in its order; equal tokens mean unchanged members.

        A source that knows nothing of single members answers for all of them at once, by its digest.
        """
        state = self.listing_digest()[:16]
        return [f"{entry.size}-{state}" for entry in self.listing().entries]

    @abc.abstractmethod
    def open(self, unit: Unit) -> Iterator[Member]:
        """Yield every member of a unit once, those without bytes too."""


def member_of(entry: Entry, data: bytes | None, reason: str = "", message: str = "") -> Member:
    """Return the member of an entry; a reason, given or listed, takes the place of bytes."""
    reason, message = (entry.reason, entry.message) if entry.reason else (reason, message)
    return Member(
        key=entry.key,
        occurrence=entry.occurrence,
        image_id=entry.image_id,
        data=None if reason else data,
        label=entry.label,
        given_split=entry.given_split,
        reason=reason or None,
        message=message,
        flags=entry.flags,
        size=entry.size,
        carried=entry.carried,
    )


def no_images(uri: str, ignored: dict[str, int]) -> InputError:
    """Return the error for a source without images, saying what it holds instead."""
    found = ", ".join(f"{count:,} {kind}" for kind, count in ignored.items())
    return InputError(
        f"no images in {uri}" + (f"; it holds {found}" if found else "; it is empty"),
        mend="give a folder of class folders (SOURCE/<class>/<image>), or a .zip or .tar of one",
    )
