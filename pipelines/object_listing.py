"""What an object store holds below a prefix: page by page, and where the pages are many, folders side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import obstore
from obstore.store import ObjectStore

PAGE_OBJECTS = 1_000
MAX_PAGES_ALONE = 10
"""Pages of a listing that are awaited one by one; a longer one is done by folder, many at once."""
LISTING_THREADS = 16


def list_objects(store: ObjectStore, start: str) -> list[Any]:
    """Return what obstore says of every object below a prefix, in any order.

    obstore matches prefixes by whole path segments, so `data` never lists `database/`.
    """
    found = _pages(store, start, limit=MAX_PAGES_ALONE)
    return _pages_by_folder(store, start) if found is None else found


def _pages(store: ObjectStore, start: str, *, limit: int | None = None) -> list[Any] | None:
    """List page by page, each of which tells where the next begins; None where there are more than `limit`."""
    found: list[Any] = []
    for number, batch in enumerate(obstore.list(store, prefix=start or None, chunk_size=PAGE_OBJECTS)):
        if number == limit:
            return None
        found += batch
    return found


def _pages_by_folder(store: ObjectStore, start: str) -> list[Any]:
    """List the folders right below a prefix side by side."""
    here = obstore.list_with_delimiter(store, prefix=start or None)
    found: list[Any] = [*here["objects"]]
    with ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="list") as pool:
        for below in pool.map(partial(_pages, store), here["common_prefixes"]):
            found += below or ()
    return found
