"""Catalogs: versions, the rules of publishing, and that skipping needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipelines.dataset.catalog import (
    DATASET_FORMAT,
    PublishConflict,
    format_ref,
    list_versions,
    next_run_id,
    parse_ref,
    publish_version,
    published_version,
    purged_path,
    read_version,
    version_path,
)
from pipelines.errors import DataError, InputError, StorageError
from pipelines.storage import Storage

KEY = "a" * 32


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sets/photos", ("sets/photos", None)),
        ("sets/photos@v3", ("sets/photos", 3)),
        ("sets/photos@12", ("sets/photos", 12)),
        ("s3://user@bucket/photos", ("s3://user@bucket/photos", None)),
        ("s3://user@bucket/photos@v1", ("s3://user@bucket/photos", 1)),
        ("a@v1@v2", ("a@v1", 2)),
        ("me@home/photos", ("me@home/photos", None)),
        ("photos@home/", ("photos@home/", None)),
        ("@v1", ("@v1", None)),
    ],
)
def test_references(text, expected):
    assert parse_ref(text) == expected


def test_a_version_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"'photos@newest' has no version after the @, but 'newest'"):
        parse_ref("photos@newest")
    assert format_ref("photos", 3) == "photos@v3"


def test_nothing_published_reads_as_none(storage):
    assert read_version(storage) is None
    assert list_versions(storage) == []
    assert next_run_id(storage, KEY) == f"{KEY}-0"
    with pytest.raises(InputError, match="has no version v1; published: none"):
        read_version(storage, 1)


def test_publishing_fills_in_what_every_version_carries(storage):
    assert publish_version(storage, f"{KEY}-0", {"stage": "ingest", "rows": 3}) == 1
    assert read_version(storage) == {
        "format": DATASET_FORMAT,
        "format_version": 2,
        "stage": "ingest",
        "rows": 3,
        "version": 1,
        "parent": 0,
        "run_id": f"{KEY}-0",
        "runs": [f"{KEY}-0"],
        "dead": [],
    }
    publish_version(storage, "b-0", {"stage": "patch", "rows": 2}, base=1)
    newest = read_version(storage)
    assert (newest["version"], newest["parent"], newest["runs"]) == (2, 1, [f"{KEY}-0", "b-0"])
    assert read_version(storage, 1)["rows"] == 3


def test_the_own_run_standing_there_means_done(storage):
    publish_version(storage, "a-0", {"rows": 1})
    publish_version(storage, "b-0", {"rows": 2}, base=1)
    publish_version(storage, "c-0", {"rows": 3}, base=2)
    assert publish_version(storage, "a-0", {"rows": 1}) == 1
    assert publish_version(storage, "b-0", {"rows": 2}, base=1) == 2
    assert list_versions(storage) == [1, 2, 3]
    assert published_version(storage, "b-0") == 2
    assert published_version(storage, "x-0") is None


def test_another_run_standing_there_is_refused_and_named(storage):
    publish_version(storage, "a-0", {"rows": 1})
    with pytest.raises(PublishConflict, match=r"@v1 was published by another run \(a-0\)") as error:
        publish_version(storage, "b-0", {"rows": 2})
    assert error.value.exit_code == 4
    assert list_versions(storage) == [1]


def test_a_rebase_sees_what_stands_and_publishes_after_it(storage):
    publish_version(storage, "a-0", {"rows": 1})
    publish_version(storage, "b-0", {"rows": 2}, base=1)
    seen = []

    def rebase(standing, version):
        seen.append((standing["rows"], version))
        return {"rows": standing["rows"] + 10}

    assert publish_version(storage, "c-0", {"rows": 10}, rebase=rebase) == 3
    assert seen == [(2, 2)]
    assert read_version(storage)["rows"] == 12


def test_a_catalog_that_forgets_what_stands_is_our_bug(storage):
    publish_version(storage, "a-0", {"sources": {"photos": KEY}})
    with pytest.raises(AssertionError, match=r"has lost the sources \['photos'\]"):
        publish_version(storage, "b-0", {"sources": {"more": KEY}}, base=1)


def test_dead_runs_stay_dead_are_refused_and_have_a_next_generation(storage):
    publish_version(storage, "b-0", {"rows": 1})
    publish_version(storage, "c-0", {"rows": 1, "dead": [f"{KEY}-0"]}, base=1)
    publish_version(storage, "d-0", {"rows": 2}, base=2)
    assert read_version(storage)["dead"] == [f"{KEY}-0"]
    assert next_run_id(storage, KEY) == f"{KEY}-1"
    for base in (0, 1, 3):
        with pytest.raises(StorageError, match=f"run {KEY}-0 was declared dead by gc in .*@v3"):
            publish_version(storage, f"{KEY}-0", {"rows": 9}, base=base, rebase=lambda catalog, _version: catalog)
    assert list_versions(storage) == [1, 2, 3]


def test_a_purged_version_refuses_to_open_by_name(storage):
    publish_version(storage, "a-0", {"rows": 1})
    publish_version(storage, "b-0", {"rows": 2}, base=1)
    storage.create(purged_path(1), b"{}")
    with pytest.raises(InputError, match="@v1 was purged and cannot be opened") as error:
        read_version(storage, 1)
    assert "@v2" in error.value.mend
    assert read_version(storage)["rows"] == 2


def test_a_missing_version_names_those_there_are(storage):
    publish_version(storage, "a-0", {"rows": 1})
    with pytest.raises(InputError, match="has no version v4; published: v1 to v1"):
        read_version(storage, 4)


def test_another_format_is_refused(storage):
    publish_version(storage, "a-0", {"format": "resnet-pipelines/predictions"})
    assert read_version(storage)["format"] == "resnet-pipelines/predictions"
    with pytest.raises(InputError, match="holds 'resnet-pipelines/predictions', not 'resnet-pipelines/dataset'"):
        read_version(storage, stage_format=DATASET_FORMAT)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{", DataError, "is not JSON"),
        ("[]", DataError, "is not a catalog of this program"),
        (json.dumps({"format_version": 3}), InputError, "has format version 3; this program reads up to 2"),
    ],
)
def test_catalogs_that_cannot_be_read(storage, text, kind, message):
    storage.put(version_path(1), text.encode())
    with pytest.raises(kind, match=message):
        read_version(storage)


def test_a_skip_is_decided_without_pyarrow_torch_ray_or_mlflow(storage):
    publish_version(storage, "a-0", {"sources": {"photos": KEY}})
    program = (
        "import sys; from pipelines.dataset.catalog import read_version; from pipelines.storage import Storage\n"
        f"assert read_version(Storage.open({storage.uri!r}))['sources']['photos'] == {KEY!r}\n"
        "heavy = {'pyarrow', 'torch', 'ray', 'mlflow', 'pandas', 'numpy', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
