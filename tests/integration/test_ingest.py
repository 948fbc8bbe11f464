"""`ingest` on a real local Ray: the same dataset as without it, resumed, and a worker that dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import open_dataset
from pipelines.errors import DataError, InputError
from pipelines.ingest import stage
from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.stored import NO_PRIVACY
from pipelines.ingest.task import try_alone
from pipelines.ingest.unit import ingest_unit
from tests import factories

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a zip of several units: noisy PNGs are large."""
    files = [(f"{'abc'[i % 3]}/{i:03d}.png", factories.make_png(i, 420, 360)) for i in range(40)]
    files += [("a/empty.png", b""), ("b/text.jpg", b"not a picture"), ("c/copy.png", files[2][1])]
    path = tmp_path_factory.mktemp("ingest") / "photos.zip"
    path.write_bytes(factories.make_zip(files))
    return path


def test_ray_makes_the_dataset_that_one_process_makes(archive: Path, tmp_path: Path) -> None:
    alone = stage.run(
        IngestConfig(source=str(archive), out=str(tmp_path / "alone")),
        lambda job, units: (ingest_unit(unit, job) for unit in units),
    )
    on_ray = stage.run(IngestConfig(source=str(archive), out=str(tmp_path / "ray")))
    one, other = open_dataset(alone.out), open_dataset(on_ray.out)
    assert one.fingerprint == other.fingerprint
    assert one.catalog["counts"] == other.catalog["counts"]
    assert one.catalog["counts"]["quarantined"] == 2
    assert list(inspect.verify(other)) == []
    assert float(on_ray.figures["images_per_s"]) > 0
    assert on_ray.next_commands[:2] == (f"resnet data show {on_ray.out}", f"resnet train {on_ray.out}")


def test_an_append_on_ray_keeps_changed_images_in_their_split(tmp_path: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 12, "dog": 8})
    config = IngestConfig(source=str(folder), out=str(tmp_path / "out"), append=True)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    before = _splits(str(tmp_path / "out"))
    changed = next(key for key, split in before.items() if split == "test")
    (folder / changed).write_bytes(factories.make_jpeg(700, 32, 32))
    factories.write_class_folder(folder, {"fox": 4}, seed=50)
    result = stage.run(config)
    assert (result.figures["added"], result.figures["changed"]) == (4, 1)
    after = _splits(result.out)
    assert before.items() <= after.items()
    assert list(inspect.verify(open_dataset(result.out))) == []


def _splits(reference: str) -> dict[str, str]:
    dataset = open_dataset(reference)
    return {key: split for split in dataset.splits for key in dataset.table(split, ["key"]).column("key").to_pylist()}


def test_only_units_without_a_receipt_are_done(archive: Path, tmp_path: Path) -> None:
    done: list[int] = []

    class Stop(Exception):
        """Ends the first run after two units."""

    def two_units(job, units):  # type: ignore[no-untyped-def]
        for unit in units[:2]:
            done.append(unit.index)
            yield ingest_unit(unit, job)
        raise Stop

    config = IngestConfig(source=str(archive), out=str(tmp_path / "out"))
    with pytest.raises(Stop):
        stage.run(config, two_units)
    assert len(done) == 2
    before = {path.name for path in (tmp_path / "out" / "data").rglob("*.parquet")}
    stage.run(config)
    shards = {Path(shard.path).name for shard in open_dataset(str(tmp_path / "out")).shards()}
    # what was done is not done again: its shards live on, or were written anew without their leaks
    assert all(name in shards or f"{name.rpartition('-')[0]}-leaks-dropped.parquet" in shards for name in before)


def test_faults_keep_their_exit_code(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        stage.run(IngestConfig(source=str(archive), out=str(tmp_path / "out"), max_quarantined_fraction=0.01))
    assert caught.value.exit_code == 3
    assert "2 of 43 images cannot be used (EMPTY 1, NOT_IMAGE 1); 1.0% are allowed" in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        stage.run(IngestConfig(source=str(tmp_path / "nowhere"), out=str(tmp_path / "out")))


def test_an_image_is_tried_in_a_process_of_its_own() -> None:
    assert try_alone(factories.make_jpeg(), (), ImageConfig(), NO_PRIVACY) is None
    assert try_alone(b"not a picture", (), ImageConfig(), NO_PRIVACY) is None  # harmless; the unit itself refuses it


def test_a_dead_process_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.ingest import task

    def die(*_: object) -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(task, "_prepare_here", die)
    refusal = try_alone(b"", (), ImageConfig(), NO_PRIVACY)
    assert refusal is not None
    assert refusal.reason == "KILLED_WORKER"
    assert refusal.message.startswith("the process that prepared it died")
