"""The catalog of a set of predictions: what is published, and what a rerun finds standing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipelines.dataset.catalog import list_versions, read_version
from pipelines.errors import InputError, NotFound
from pipelines.stage_output import RUN, Plan
from pipelines.storage import Storage

FORMAT = "resnet-pipelines/predictions"
SPLIT = "predictions"

_INPUT_WORDS = {
    "listing": "the archive changed since that run began (its listing differs)",
    "weights": "the model is another one",
    "model": "the model is another one",
    "source": "the source has another name",
}


def read_predictions(storage: Storage, version: int | None = None) -> dict[str, Any] | None:
    """Return the catalog of published predictions, or None where nothing is published.

    Raises:
        InputError: the folder holds something else.
    """
    return read_version(storage, version, stage_format=FORMAT)


def find_published(storage: Storage, plan: Plan) -> dict[str, Any] | None:
    """Return the catalog if exactly this plan was carried out already.

    Raises:
        InputError: predictions of another key stand there.
    """
    if not list_versions(storage):
        return None
    catalog = read_predictions(storage)
    assert catalog is not None
    if catalog["key"] != plan.key:
        raise InputError(
            f"output folder {storage.uri} holds the predictions of another run (key {catalog['key']},"
            f" this one has {plan.key}): {_difference(catalog.get('inputs', {}), plan.inputs)}",
            mend="choose another --out",
        )
    return catalog


def refuse_other_run(storage: Storage, plan: Plan) -> None:
    """Refuse a folder in which another run was begun and not finished, saying what differs.

    Raises:
        InputError: archive, model or settings differ from those of the unfinished run.
    """
    try:
        standing = json.loads(storage.read(RUN))
    except (NotFound, ValueError):
        return
    if standing.get("key") == plan.key or standing.get("stage") != plan.stage:
        return  # ours, or something that `open_run` refuses in its own words
    before = standing.get("inputs", {})
    mend = "choose another --out"
    if before.get("weights") != plan.inputs["weights"] and before.get("listing") == plan.inputs["listing"]:
        mend += f", or finish that run with --model models:/{before.get('model')}"
    raise InputError(
        f"output folder {storage.uri} holds an unfinished score run of other input: {_difference(before, plan.inputs)}",
        mend=mend,
    )


def make_catalog(
    *,
    plan: Plan,
    receipts: Mapping[int, Mapping[str, Any]],
    shard_list: Mapping[str, Any],
    run_id: str,
    source: Mapping[str, str],
    model: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what is published: counts, reasons, fingerprint and list of files; `publish_version` adds the rest.

    The fields `splits`, `shard_lists` and `patches` are those of a dataset's catalog, so that one tool lists files.
    """
    reasons: Counter[str] = Counter()
    for receipt in receipts.values():
        reasons.update(receipt["reasons"])
    members = sum(int(receipt["members"]) for receipt in receipts.values())
    unscored = sum(reasons.values())
    total = sum(int(receipt["file"]["fingerprint"], 16) for receipt in receipts.values()) % (1 << 256)
    size = sum(int(receipt["file"]["bytes"]) for receipt in receipts.values())
    fingerprint = f"{total:064x}"
    return {
        "format": FORMAT,
        "stage": plan.stage,
        "key": plan.key,
        "inputs": dict(plan.inputs),
        "source": dict(source),
        "model": dict(model),
        "rows": members,
        "counts": {"members": members, "scored": members - unscored, "unscored": unscored},
        "reasons": dict(sorted(reasons.items())),
        "fingerprint": fingerprint,
        "splits": {SPLIT: {"rows": members, "bytes": size, "fingerprint": fingerprint}},
        "shard_lists": [{"run_id": run_id, **shard_list}],
        "patches": [],
        "config": dict(config),
    }


def _difference(before: Mapping[str, Any], now: Mapping[str, str]) -> str:
    words = [text for name, text in _INPUT_WORDS.items() if name in before and before[name] != now.get(name)]
    return "; ".join(dict.fromkeys(words)) or "its settings differ"
