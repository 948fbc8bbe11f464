"""Reading refused members again, after their source was mended: those that pass now are rows of a new version."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.catalog import Catalog, PublishConflict, format_ref, next_run_id
from pipelines.dataset.quarantine import read_quarantine
from pipelines.dataset.reader import Dataset
from pipelines.dataset.taken import read_taken
from pipelines.ingest.append import Joining
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.listed import make_table
from pipelines.ingest.newcomers import (
    KeptSplit,
    PartSource,
    Update,
    carrying,
    known_listing,
    read_columns,
    remark_moved,
    standing_rows,
)
from pipelines.sources.base import Listing, Source
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

_IDENTITY = ("image_id", "source")

FREE = {"max_quarantined_fraction": 1.0, "max_quarantined_fraction_per_class": 1.0}
"""Settings of a retry: of what was refused once, all may be refused again."""


def find_refused(dataset: Dataset, source: Source) -> Update | None:
    """Return the refused members of a source that it still lists.

    The dataset's plan places them by what the source says of them now: the row of a refusal may have been decided
    without their label, group or folder. A changed member whose earlier content stands keeps the split of its row.

    None where nothing is refused, or nothing of it is there any more.

    Raises:
        InputError: the source has columns that the dataset does not carry.
        ConfigError: the dataset is divided by a column that the source has not.
    """
    rows = read_quarantine(dataset, columns=_IDENTITY)
    refused = {row["image_id"] for row in rows if row["source"] == source.name}
    listing = source.listing()
    entries = tuple(entry for entry in listing.entries if entry.image_id in refused)
    if gone := len(refused) - len({entry.image_id for entry in entries}):
        logger.warning("%d refused members of %s are no longer in it: they stay refused", gone, source.name)
    standing = standing_rows(dataset, {entry.image_id for entry in entries})
    withheld = {image_id for image_id, row in standing.items() if not row.is_live}
    withheld |= read_taken(dataset).intersection(entry.image_id for entry in entries)
    if withheld:
        logger.warning("refused members whose images were taken out before stay refused: %d", len(withheld))
    entries = tuple(entry for entry in entries if entry.image_id not in withheld)
    replaced = {image_id: row for image_id, row in sorted(standing.items()) if row.is_live}
    if not entries:
        return None
    remarks: list[str] = []
    columns = read_columns(dataset, source)
    entries = carrying(entries, source, columns, remarks)
    plan = KeptSplit.from_json(dataset.catalog["split"])
    assert isinstance(plan, KeptSplit)
    plan.check([entry for entry in entries if not entry.reason], columns, tells_keys=source.tells_keys)
    kept = {image_id: row.split for image_id, row in replaced.items()}
    known = known_listing(dataset, source.name, [])
    ids = make_table([entry.image_id for entry in entries], [None] * len(entries)).column("image_id").combine_chunks()
    listed = make_table([entry.image_id for entry in listing.entries], source.tokens())
    table = pa.concat_tables(
        [
            known.filter(pc.invert(pc.is_in(known.column("image_id"), value_set=ids))),
            listed.filter(pc.is_in(listed.column("image_id"), value_set=ids)),
        ]
    ).combine_chunks()
    part = PartSource(source, Listing(entries, {}, listing.faults), columns)
    remark_moved(part, dataset.uri, plan, entries, replaced, remarks)
    return Update(part, replace(plan, kept=kept), table, replaced, [], len(withheld), tuple(remarks))


def retry_run_id(store: Storage, config: IngestConfig, standing: Catalog, source: Source, update: Update) -> str:
    """Return the run id of a retry: that of one that was killed, else a new one.

    After one that ended without anything to publish (`end_retry`) the next one reads again, since what failed by time
    or memory may pass today.
    """
    settings = config.model_dump(mode="json", exclude={"out", "ray"})
    parts = ["retry", standing["sources"][source.name], standing["version"], settings, update.digest()]
    parts.append(source.listing_digest())
    number = 0
    while True:
        key = hashlib.sha256(json.dumps([*parts, number]).encode()).hexdigest()[:32]
        run_id = next_run_id(store, key)
        if not store.exists(_end_path(run_id)):
            return run_id
        number += 1


def end_retry(store: Storage, run_id: str) -> None:
    """Note that a retry came to its end and published nothing; until `gc` it is not gone on with."""
    store.put(_end_path(run_id), b"")


def _end_path(run_id: str) -> str:
    return f"_work/{run_id}/ended"


@dataclass(frozen=True)
class Retrying:
    """Joins what passed to whatever version stands, and takes all that was read again out of its quarantine."""

    join: Joining
    image_ids: frozenset[str]

    def __call__(self, standing: Catalog, version: int) -> Catalog:
        """Return the catalog to publish after a version; also the `rebase` of publishing.

        Raises:
            PublishConflict: another run has read the same source, or decided about the same members, meanwhile.
        """
        store = self.join.store
        rows = read_quarantine(Dataset(store.uri, version, standing), columns=_IDENTITY)
        refused = {row["image_id"] for row in rows}
        if missing := self.image_ids - refused:
            raise PublishConflict(
                f"in {format_ref(store.uri, version)} {len(missing):,} of the members that were read again are not"
                f" refused any more: another run has decided about them; run {self.join.run_id} is not published",
                mend="run the same command again: it reads what is refused now",
            )
        catalog = self.join(standing, version)
        catalog["difference"] = {**catalog["difference"], "retried": len(self.image_ids)}
        return {**catalog, "config": standing["config"]}
