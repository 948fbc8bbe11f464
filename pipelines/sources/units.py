"""Cutting a listing into units so that shards are mixed and reads stay sequential."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from pipelines.sources.base import Entry, Unit

MIN_UNIT_BYTES = 4 * 2**20
MAX_UNIT_BYTES = 64 * 2**20
MAX_UNIT_ROWS = 8_192
SPANS_PER_UNIT = 16
MAX_SPAN_BYTES = 8 * 2**20
WANTED_UNITS = 16
"""A small source is cut this finely, so that a few cores share the work and a kill costs little."""
MAX_STREAMED_UNITS = 4
"""Each unit of a compressed stream unpacks it from the start."""


def unit_bytes(entries: Sequence[Entry]) -> int:
    """Return the wanted size of a unit: a function of the input alone, never of the cluster."""
    total = sum(entry.size for entry in entries)
    return max(MIN_UNIT_BYTES, min(MAX_UNIT_BYTES, total // WANTED_UNITS))


def file_units(entries: Sequence[Entry]) -> list[Unit]:
    """Cut a list of files, put in an order that depends on ids alone."""
    limit = unit_bytes(entries)
    parts: list[list[Entry]] = []
    size = 0
    for entry in sorted(entries, key=_by_id):
        if not parts or len(parts[-1]) == MAX_UNIT_ROWS or size + entry.size > limit:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.size
    return [Unit(i, tuple(part)) for i, part in enumerate(parts)]


def span_units(entries: Sequence[Entry]) -> list[Unit]:
    """Cut an archive into contiguous spans and give each unit spans from across it, its rows interleaved.

    Spans are dealt like cards: of each run of as many neighbours as there are units, every unit gets one. A random
    draw would leave 2 of 10 classes out of a typical unit of a class-sorted archive.
    """
    limit = unit_bytes(entries)
    spans = list(_spans(entries, min(MAX_SPAN_BYTES, limit // SPANS_PER_UNIT), MAX_UNIT_ROWS // SPANS_PER_UNIT))
    num_units = max(1, len(spans) // SPANS_PER_UNIT)
    hands: list[list[Entry]] = [[] for _ in range(num_units)]
    for start in range(0, len(spans), num_units):
        deal = spans[start : start + num_units]
        order = sorted(range(num_units), key=lambda seat, start=start: _keyed(start, seat))  # type: ignore[misc]
        for seat, span in zip(order, deal, strict=False):
            hands[seat] += span
    return [Unit(i, tuple(sorted(hand, key=_by_id))) for i, hand in enumerate(hands)]


def streamed_units(entries: Sequence[Entry]) -> list[Unit]:
    """Deal the members of a compressed stream, in its order, to a few units."""
    total = sum(entry.size for entry in entries)
    num_units = max(1, min(MAX_STREAMED_UNITS, total // MAX_UNIT_BYTES))
    return [Unit(i, tuple(entries[i::num_units])) for i in range(num_units)]


def deal(pieces: Sequence[Sequence[Entry]], wanted: int) -> list[Unit]:
    """Deal pieces that are read whole to about the wanted number of units, as cards are dealt.

    A unit to which a piece would bring more than it may hold is closed, and another begun in its place.
    """
    number = max(1, min(len(pieces), max(wanted, sum(map(len, pieces)) // MAX_UNIT_ROWS)))
    hands: list[list[Entry]] = [[] for _ in range(number)]
    sizes = [0] * number
    closed: list[list[Entry]] = []
    for place, piece in enumerate(pieces):
        seat, more = place % number, sum(entry.size for entry in piece)
        if hands[seat] and (len(hands[seat]) + len(piece) > MAX_UNIT_ROWS or sizes[seat] + more > MAX_UNIT_BYTES):
            closed.append(hands[seat])
            hands[seat], sizes[seat] = [], 0
        hands[seat] += piece
        sizes[seat] += more
    return [Unit(index, tuple(hand)) for index, hand in enumerate([*closed, *hands])]


def read_ranges(entries: Iterable[Entry], *, max_gap: int = 64 * 1024) -> list[tuple[int, int, list[Entry]]]:
    """Join the extents of readable entries into (offset, length, entries), each of at most about 8 MB."""
    ranges: list[tuple[int, int, list[Entry]]] = []
    for entry in sorted((entry for entry in entries if not entry.reason), key=lambda entry: entry.offset):
        end = entry.offset + entry.extent
        if ranges:
            start, length, members = ranges[-1]
            if entry.offset - (start + length) <= max_gap and end - start <= MAX_SPAN_BYTES:
                members.append(entry)
                ranges[-1] = (start, max(length, end - start), members)
                continue
        ranges.append((entry.offset, entry.extent, [entry]))
    return ranges


def _spans(entries: Sequence[Entry], max_bytes: int, max_rows: int) -> Iterator[list[Entry]]:
    """Yield runs of neighbours; entries come in the order of the archive."""
    number, size, rows = 0, 0, 0

    def span_of(entry: Entry) -> int:
        nonlocal number, size, rows
        if rows == max_rows or (rows and size + entry.size > max_bytes):
            number, size, rows = number + 1, 0, 0
        size, rows = size + entry.size, rows + 1
        return number

    for _, span in groupby(entries, key=span_of):
        yield list(span)


def _by_id(entry: Entry) -> str:
    return entry.image_id


def _keyed(start: int, seat: int) -> bytes:
    return hashlib.sha256(f"{start}:{seat}".encode()).digest()
