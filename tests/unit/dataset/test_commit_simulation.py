"""The commit protocol, simulated: every call killed before, after, or its answer lost; all orders of several commands.

Whatever happens, a published version is whole from its first moment and stays so, no version is lost or replaced, and
running the commands again ends in the dataset that undisturbed commands make.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipelines.dataset import collect as collect_module
from pipelines.dataset import shards, tables
from pipelines.dataset.catalog import (
    list_versions,
    next_run_id,
    publish_version,
    read_version,
    version_path,
)
from pipelines.dataset.collect import clean_run, compact, gc, named_files, owner_of
from pipelines.dataset.content import append_catalog
from pipelines.dataset.patch import Change, add_patch, publish_patch, resolve_changes
from pipelines.dataset.reader import Dataset
from pipelines.dataset.receipt import ShardFile, UnitReport, read_receipts, write_receipt
from pipelines.dataset.shards import read_shard_list
from pipelines.dataset.writer import ShardWriter
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, make_row, make_test_catalog
from tests.unit.dataset.simulation import (
    FAULTS,
    LOCAL,
    URI,
    Command,
    HasTurn,
    Process,
    Schedule,
    SimStorage,
    Violation,
    World,
    explore,
    open_here,
)

SOURCES = {
    "one": ("1" * 32, {0: [0], 1: [1]}),
    "two": ("2" * 32, {0: [2]}),
    "three": ("3" * 32, {0: [3]}),
    "one, grown": ("4" * 32, {0: [0, 4]}),
}
"""Source name -> stage key and numbered rows of each unit."""


def ingest(source: str) -> Command:
    """Return a command that ingests a source as the stage does: resume, write, publish, clean up."""

    def command(storage: Storage, process: str) -> None:
        key, units = SOURCES[source]
        newest = read_version(storage)
        if newest and newest["sources"].get(source) == key:
            return
        run_id = next_run_id(storage, key)
        receipts = read_receipts(storage, run_id)
        for unit in units:
            if unit not in receipts:
                receipts[unit] = write_receipt(
                    storage, run_id, unit, write_shards(storage, run_id, source, unit, process)
                )
        files = [file for _, receipt in sorted(receipts.items()) for file in UnitReport.from_json(receipt).files]
        own = make_test_catalog(storage, run_id, files, [], source)
        catalog = append_catalog(newest, own) if newest else own
        base = newest["version"] if newest else 0
        publish_version(
            storage, run_id, catalog, base=base, rebase=lambda standing, _version: append_catalog(standing, own)
        )
        clean_run(storage, run_id)

    return command


def grow(storage: Storage, process: str) -> None:
    """Append news of the first source: one image of it changed, so that its row is superseded, and one is new."""
    known, (key, units) = SOURCES["one"][0], SOURCES["one, grown"]
    newest = read_version(storage)
    if not newest or newest["sources"].get("one") != known:
        return
    run_id = next_run_id(storage, key)
    receipts = read_receipts(storage, run_id)
    for unit in units:
        if unit not in receipts:
            report = write_shards(storage, run_id, "one, grown", unit, process)
            receipts[unit] = write_receipt(storage, run_id, unit, report)
    files = [file for _, receipt in sorted(receipts.items()) for file in UnitReport.from_json(receipt).files]
    own = make_test_catalog(storage, run_id, files, [], "one")

    def joined(standing: dict, version: int) -> dict:
        base = Dataset(URI, version, standing)
        rows = resolve_changes(base, [Change(image_id(0, "one"), "live", False, "superseded")])
        return append_catalog(add_patch(base, run_id, rows), own, grows={"one": known})

    publish_version(storage, run_id, joined(newest, newest["version"]), base=newest["version"], rebase=joined)
    clean_run(storage, run_id)


@cache
def written_unit(source: str, unit: int) -> tuple[ShardFile, bytes]:
    """Return the shard of a unit and its bytes, written once: they do not depend on the attempt."""
    storage = SimStorage(World())
    writer = ShardWriter(storage, "run", unit, "once")
    for number in SOURCES[source][1][unit]:
        row = make_row(number, source=source.partition(",")[0])
        if source == "one, grown" and number == 0:
            row["source_sha256"] = "0" * 64  # the same image with other content
        writer.append("train", row)
    (file,) = writer.close().files
    return file, storage.read(file.path)


def write_shards(storage: Storage, run_id: str, source: str, unit: int, attempt: str) -> dict:
    """Write a unit's shard as one attempt and return its report."""
    file, data = written_unit(source, unit)
    file = replace(file, path=f"data/{run_id}/train/part-{unit:06d}-{attempt}.parquet")
    storage.put(file.path, data)
    return UnitReport(unit, attempt, [file], [], {"written": file.rows, "quarantined": 0}).to_json()


def is_shared(verb: str, path: str, before: str) -> bool:
    """Return whether a call can be seen by, or depends on, another command; the rest needs no turn of its own.

    What a run writes below its own name is seen by nobody until its receipt or a catalog names it, and a catalog,
    once created, never changes, so that reading it commutes with everything. Of several deletions in a row only the
    first is raced with: nobody reads what no catalog names.
    """
    if verb == "create":
        return path.startswith(("_versions/", "_work/"))
    return verb == "list" or (verb == "delete" and before != "delete")


def is_catalog(verb: str, path: str, before: str) -> bool:
    """Return whether a call lists or creates versions: all that commands of different runs share, but for `gc`."""
    return path.startswith("_versions") and verb in ("list", "create")


def every_call(verb: str, path: str, before: str) -> bool:
    """Give every call its turn, so that it can be the one that fails."""
    return True


def collect(storage: Storage, process: str) -> None:
    """Declare every unpublished run dead, which is more than any real setting does, and delete."""
    if read_version(storage):
        gc(storage, dead_after_s=-1, now=0)


def relabel(storage: Storage, process: str) -> None:
    """Relabel one image of the first source."""
    publish_patch(URI, [Change(image_id(0, "one"), "label", "owl", "seen")])


def compact_all(storage: Storage, process: str) -> None:
    """Write patched shards anew."""
    compact(URI)


def restore(storage: Storage, process: str) -> None:
    """Relabel another image, so that a patch lands on what is being compacted."""
    publish_patch(URI, [Change(image_id(1, "one"), "label", "emu", "seen")])


def leave_litter(storage: Storage, process: str) -> None:
    """Write a unit of the second source and stop, as a killed ingest does."""
    key, _ = SOURCES["two"]
    write_receipt(storage, f"{key}-0", 0, write_shards(storage, f"{key}-0", "two", 0, process))


COMMANDS: dict[str, Command] = {
    **{source: ingest(source) for source in ("one", "two", "three")},
    "grow": grow,
    "gc": collect,
    "patch": relabel,
    "restore": restore,
    "compact": compact_all,
    "litter": leave_litter,
}


def run_in_turn(names: Sequence[str]) -> tuple[int, str]:
    """Return rows and fingerprint of the dataset that undisturbed commands make, one after the other."""
    world = standing(tuple(names))
    catalog = read_version(SimStorage(world))
    assert catalog is not None
    return catalog["rows"], catalog["fingerprint"]


@cache
def standing(names: tuple[str, ...]) -> World:
    """Return a world in which commands were carried out one after the other, with the watch on."""
    world = World(watch=watch)
    LOCAL.storage = SimStorage(world)
    for name in names:
        LOCAL.process = f"before-{name}"
        COMMANDS[name](LOCAL.storage, LOCAL.process)
    return world


def watch(world: World, verb: str, path: str, data: bytes) -> None:
    """Hold what must be true at every single moment."""
    if path.startswith("_versions/"):
        if verb != "create":
            raise Violation(f"{verb} {path}: a catalog is created once and then stands")
        check_whole(world, json.loads(data))
        return
    if (verb == "delete" or world.files.get(path, data) != data) and path in all_named(world):
        raise Violation(f"{verb} {path}, which a published version names")


def check_whole(world: World, catalog: dict) -> None:
    """Check that every file that a catalog names is there, with the bytes that were written."""
    storage = SimStorage(world)
    entries = [(entry["path"], entry["sha256"]) for entry in [*catalog["shard_lists"], *catalog["patches"]]]
    for entry in catalog["shard_lists"]:
        shards, _ = read_shard_list(storage, entry)
        entries += [(file.path, file.sha256) for file in shards]
        if len({(file.split, file.unit) for file in shards}) != len(shards):
            raise Violation(f"a unit is counted twice in {catalog['version']}")
    for path, sha256 in entries:
        if path not in world.files:
            raise Violation(f"v{catalog['version']} names {path}, which is not there")
        if hashlib.sha256(world.files[path]).hexdigest() != sha256:
            raise Violation(f"v{catalog['version']} names {path}, which has other bytes")


def all_named(world: World) -> set[str]:
    """Return what any published version names."""
    storage = SimStorage(world)
    named: set[str] = set()
    for version in list_versions(storage):
        named |= named_of(storage.read(version_path(version)), storage)
    return named


_NAMED: dict[bytes, set[str]] = {}


def named_of(text: bytes, storage: Storage) -> set[str]:
    """Return what a catalog names; remembered, since shard lists never change."""
    if text not in _NAMED:
        _NAMED[text] = named_files(storage, json.loads(text))
    return _NAMED[text]


class Ending:
    """What must be true at the end of every run, and after the commands were run once more."""

    def __init__(self, commands: list[tuple[str, Command]], rows: int, fingerprint: str) -> None:
        self.commands = commands
        self.rows = rows
        self.fingerprint = fingerprint

    def __call__(self, world: World, processes: list[Process], schedule: Schedule) -> None:
        try:
            self._check(world, processes)
        except Exception as error:
            raise Violation(f"after {schedule}") from error

    def _check(self, world: World, processes: list[Process]) -> None:
        LOCAL.storage = storage = SimStorage(world)
        newest = read_version(storage)
        for process in processes:
            source = process.name.rstrip("'")
            if process.succeeded and source in SOURCES:
                assert newest is not None
                assert source in newest["sources"], f"{source} was told it is done, and is not in the dataset"
        for name, command in self.commands:
            LOCAL.process = f"again-{name}"
            command(storage, LOCAL.process)
        newest = read_version(storage)
        assert newest is not None
        assert (newest["rows"], newest["fingerprint"]) == (self.rows, self.fingerprint)
        versions = list_versions(storage)
        assert versions == list(range(1, versions[-1] + 1))
        for version in versions:
            check_whole(world, json.loads(storage.read(version_path(version))))
        collect(storage, "last")
        assert {path for path in world.files if owner_of(path)} == all_named(world), "litter is left"


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    monkeypatch.setattr(Storage, "open", staticmethod(open_here))
    # A schedule must lead to the same state each time it is followed, so an attempt is named after its process.
    monkeypatch.setattr(collect_module, "secrets", SimpleNamespace(token_hex=lambda _size: LOCAL.process))
    # Encoding and decoding are pure; thousands of runs need not repeat them.
    monkeypatch.setattr(shards, "decode_table", lru_cache(maxsize=None)(tables.decode_table))
    encoded: dict[str, bytes] = {}

    def encode_once(table: pa.Table) -> bytes:
        rows = repr(table.to_pylist())
        if rows not in encoded:
            encoded[rows] = tables.encode_table(table)
        return encoded[rows]

    monkeypatch.setattr(shards, "encode_table", encode_once)


EMPTY_PLACE: tuple[str, ...] = ()
ALONE = [
    (EMPTY_PLACE, "one"),
    (("two",), "one"),
    (("one",), "gc"),
    (("one", "litter"), "gc"),
    (("one",), "patch"),
    (("one", "two", "patch"), "compact"),
    (("one",), "grow"),
]
"""What stands before, and the command whose calls fail."""

PAIRS = {
    "two sources into an empty place": (EMPTY_PLACE, ["one", "two"], is_catalog),
    "two sources into one dataset": (("three",), ["one", "two"], is_catalog),
    "an append and gc": (("one",), ["two", "gc"], is_shared),
    "the same ingest twice": (EMPTY_PLACE, ["two", "two'"], is_shared),
    "a patch and an append": (("one",), ["patch", "two"], is_catalog),
    "the same patch twice": (("one",), ["patch", "patch'"], is_catalog),
    "a grown source and another": (("one",), ["grow", "two"], is_catalog),
    "a grown source twice": (("one",), ["grow", "grow'"], is_shared),
    "a grown source and a patch": (("one",), ["grow", "restore"], is_catalog),
    "a grown source and gc": (("one",), ["grow", "gc"], is_shared),
    "a grown source and compacting": (("one", "patch"), ["grow", "compact"], is_catalog),
    "compacting and an append": (("one", "patch"), ["compact", "two"], is_catalog),
    "compacting and a patch": (("one", "patch"), ["compact", "restore"], is_catalog),
}
"""What stands before, the commands, and which of their calls are worth a turn."""
LONG_PAIRS = ("a grown source twice", "a grown source and gc")


def explore_named(
    before: tuple[str, ...], names: list[str], has_turn: HasTurn, faults: int, limit: int = 20_000
) -> int:
    """Explore commands by name, and hold every end against what undisturbed commands make."""
    commands = [(name, COMMANDS[name.rstrip("'")]) for name in names]
    undisturbed = run_in_turn([*before, *(name for name in names if not name.endswith("'"))])
    return explore(
        standing(before), commands, Ending(commands, *undisturbed), has_turn=has_turn, faults=faults, limit=limit
    )


@pytest.mark.parametrize(
    "faults",
    [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])],
    ids=["one fault", "the rerun is hit too"],
)
@pytest.mark.parametrize(("before", "name"), ALONE)
def test_every_call_killed_before_or_after_or_its_answer_lost(before, name, faults):
    assert explore_named(before, [name], every_call, faults=faults) > 3 * len(FAULTS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG_PAIRS else []) for name in PAIRS]
)
def test_every_order_of_commands_that_run_at_once(name):
    before, names, has_turn = PAIRS[name]
    assert explore_named(before, names, has_turn, faults=0) > len(names)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PAIRS)
def test_every_order_with_a_fault_at_any_call(name):
    before, names, has_turn = PAIRS[name]
    assert explore_named(before, names, has_turn, faults=1, limit=200_000) > len(names)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("before", "names", "has_turn"),
    [
        (EMPTY_PLACE, ["one", "two", "three"], is_catalog),
        (("one",), ["two", "two'", "gc"], is_shared),
    ],
)
def test_every_order_of_three_commands(before, names, has_turn):
    assert explore_named(before, names, has_turn, faults=0, limit=500_000) > 1000


def test_the_simulation_finds_a_gc_that_deletes_without_publishing(monkeypatch):
    """The rule that earlier protocols lacked: who deletes must first make the owner's publishing fail."""

    def rash(storage: Storage, process: str) -> None:
        for file in storage.list():
            newest = read_version(storage)
            if newest and (owner := owner_of(file.path)) and owner not in newest["runs"]:
                storage.delete(file.path)

    monkeypatch.setitem(COMMANDS, "gc", rash)
    with pytest.raises(Violation) as error:
        explore_named(("one",), ["two", "gc"], is_shared, faults=0)
    assert "which a published version names" in str(error.value.__cause__)


def test_the_simulation_finds_catalogs_that_replace_each_other(monkeypatch):
    """Create-if-absent is what everything rests on."""
    monkeypatch.setattr(SimStorage, "create", SimStorage.put)
    with pytest.raises(Violation) as error:
        explore_named(EMPTY_PLACE, ["one", "two"], is_catalog, faults=0)
    assert "a catalog is created once and then stands" in str(error.value.__cause__ or error.value)


def test_the_simulation_finds_a_run_that_deletes_before_it_publishes(monkeypatch):
    def rash(storage: Storage, process: str) -> None:
        key, _ = SOURCES["two"]
        run_id = next_run_id(storage, key)
        for file in storage.list():
            if owner_of(file.path) == run_id:
                storage.delete(file.path)
        ingest("two")(storage, process)

    monkeypatch.setitem(COMMANDS, "two", rash)
    with pytest.raises(Violation):
        explore_named(EMPTY_PLACE, ["two", "two'"], is_shared, faults=0)
