"""What becomes of refused members: listed, shown, tried again after a mend, accepted as lost; each counts once."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.main import run_command
from pipelines.dataset import inspect
from pipelines.dataset.catalog import PublishConflict, list_versions
from pipelines.dataset.quarantine import WORDS, accept, find_bias, group, read_quarantine
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit
from pipelines.storage import Storage
from tests import factories
from tests.unit.ingest.test_stage import Killed, Switch


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for one in units:
        yield ingest_unit(one, job)


def picture(seed: int, side: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 20 cats and 20 dogs; three dogs are cut, one cat is no image, and one is too small."""
    root = tmp_path_factory.mktemp("quarantine")
    for number in range(20):
        for name in ("cat", "dog"):
            path = root / "set" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number + 100 * (name == "dog")).save(path)
    for number in (3, 4, 5):
        path = root / "set/dog" / f"{number:02d}.png"
        path.write_bytes(path.read_bytes()[:300])
    (root / "set/cat/07.png").write_bytes(b"no image at all, and long enough to be none")
    picture(1000, 8).save(root / "set/cat/08.png")
    config = IngestConfig(
        source=str(root / "set"), out=str(root / "out"), image=ImageConfig(min_side_px=16), max_quarantined_fraction=0.2
    )
    stage.run(config, in_process)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """Return a copy of the source and its dataset, which a test may change."""
    shutil.copytree(template, tmp_path / "world")
    return tmp_path / "world"


def retry(root: Path, **settings: Any) -> stage.IngestResult:
    config = IngestConfig(source=str(root / "set"), out=str(root / "out"), retry_failed=True, moved=True, **settings)
    return stage.run(config, in_process)


def keys(dataset: Dataset) -> list[str]:
    return sorted(key for split in dataset.splits for key in dataset.table(split, ["key"]).column("key").to_pylist())


def checked(root: Path) -> Dataset:
    """Return the newest version, having held the law of counts and every byte."""
    dataset = open_dataset(str(root / "out"))
    assert list(inspect.verify(dataset)) == []
    counts = dataset.catalog["counts"]
    assert counts["members"] == counts["written"] + counts["quarantined"] + counts["dropped"] == 40
    assert counts["written"] == dataset.catalog["rows"] == len(keys(dataset)) == len(set(keys(dataset)))
    rows = read_quarantine(dataset, accepted=None)
    assert counts["quarantined"] == len(rows) == len({row["image_id"] for row in rows})
    of_reason = {name.partition(".")[2]: number for name, number in counts.items() if name.startswith("quarantined.")}
    assert of_reason == {each: sum(row["reason"] == each for row in rows) for each in {row["reason"] for row in rows}}
    return dataset


def test_groups_name_reason_and_class(template: Path) -> None:
    found = [(each.reason, each.label, each.number) for each in group(read_quarantine(checked(template)))]
    assert found == [("TRUNCATED", "dog", 3), ("NOT_IMAGE", "cat", 1), ("TOO_SMALL", "cat", 1)]


def test_what_was_mended_becomes_rows_of_a_new_version_and_nothing_is_doubled(root: Path) -> None:
    before = checked(root)
    refused = {row["key"]: row["split"] for row in read_quarantine(before)}
    for number in (3, 4):
        picture(2000 + number).save(root / f"set/dog/{number:02d}.png")
    picture(3000).save(root / "set/cat/new.png")  # not refused before: this is for an append
    assert retry(root).version == 2
    after = checked(root)
    assert set(keys(after)) - set(keys(before)) == {"dog/03.png", "dog/04.png"}
    where = {key: split for split in after.splits for key in after.table(split, ["key"]).column("key").to_pylist()}
    assert all(where[key] == refused[key] for key in ("dog/03.png", "dog/04.png"))  # the split they would have had
    assert sorted(row["key"] for row in read_quarantine(after)) == ["cat/07.png", "cat/08.png", "dog/05.png"]
    assert keys(open_dataset(f"{root / 'out'}@v1")) == keys(before)
    assert len(read_quarantine(open_dataset(f"{root / 'out'}@v1"))) == 5
    assert after.catalog["difference"]["retried"] == 5
    # a second retry does nothing new, however often
    for _ in range(2):
        again = retry(root)
        assert (again.skipped, again.version) == (True, 2)
    assert list_versions(Storage.open(str(root / "out"))) == [1, 2]
    # and what is new in the source is appended as ever
    result = stage.run(
        IngestConfig(source=str(root / "set"), out=str(root / "out"), append=True, moved=True), in_process
    )
    assert result.version == 3
    assert set(keys(open_dataset(result.out))) - set(keys(after)) == {"cat/new.png"}


def test_an_append_that_reads_a_mended_member_takes_it_out_of_the_quarantine(root: Path) -> None:
    picture(2003).save(root / "set/dog/03.png")
    stage.run(IngestConfig(source=str(root / "set"), out=str(root / "out"), append=True, moved=True), in_process)
    assert "dog/03.png" in keys(checked(root))


def test_accepting_reads_no_thumbnails_and_keeps_them(root: Path) -> None:
    seen: set[str] = set()

    def wanted(row: dict[str, Any]) -> bool:
        seen.update(row)
        return True

    before = [row["thumbnail"] for row in read_quarantine(checked(root))]
    assert any(before)
    assert accept(str(root / "out"), "lost", wanted=wanted) == (2, 5)
    assert seen == {*WORDS}
    assert [row["thumbnail"] for row in read_quarantine(checked(root), accepted=True)] == before


def test_an_append_that_reads_a_mended_member_takes_it_out_of_what_was_accepted_as_lost(root: Path) -> None:
    out = str(root / "out")
    assert accept(out, "scanner", wanted=lambda row: row["reason"] == "TRUNCATED") == (2, 3)
    picture(2003).save(root / "set/dog/03.png")
    (root / "set/dog/04.png").write_bytes(b"another content, and no image either, long enough to be none")
    stage.run(
        IngestConfig(source=str(root / "set"), out=out, append=True, moved=True, max_quarantined_fraction=0.5),
        in_process,
    )
    dataset = checked(root)
    assert "dog/03.png" in keys(dataset)
    assert [row["key"] for row in read_quarantine(dataset, accepted=True)] == ["dog/05.png"]
    assert dataset.catalog["counts"]["accepted"] == 1
    assert "dog/04.png" in {row["key"] for row in read_quarantine(dataset)}  # nobody accepted what it is now


def test_a_retry_that_was_killed_goes_on_and_one_that_failed_reads_again(root: Path) -> None:
    picture(2003).save(root / "set/dog/03.png")
    done: list[int] = []

    def killed(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        for receipt in in_process(job, units):
            done.append(receipt["unit"])
            yield receipt
        raise KeyboardInterrupt

    config = IngestConfig(source=str(root / "set"), out=str(root / "out"), retry_failed=True, moved=True)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, killed)
    assert checked(root).version == 1
    assert done == [0]
    assert retry(root).version == 2
    dataset = checked(root)
    assert "dog/03.png" in keys(dataset)


def test_a_retry_killed_at_any_write_and_run_again_ends_as_one_that_was_not(root: Path, tmp_path: Path) -> None:
    for number in (3, 4):
        picture(2000 + number).save(root / f"set/dog/{number:02d}.png")
    (root / "set/dog/05.png").write_bytes((root / "set/cat/00.png").read_bytes())  # it may leak, and then stays refused
    standing = shutil.copytree(root / "out", tmp_path / "standing")
    retry(root)
    golden = checked(root)
    with pytest.MonkeyPatch.context() as patch:
        switch = Switch(patch)
        for kill_at in range(1, 100):
            shutil.rmtree(root / "out")
            shutil.copytree(standing, root / "out")
            switch.number, switch.kill_at = 0, kill_at
            try:
                retry(root)
            except Killed:
                switch.kill_at = 0
                retry(root)
                dataset = checked(root)
                assert dataset.fingerprint == golden.fingerprint, f"killed at write {kill_at}"
                assert dataset.catalog["counts"] == golden.catalog["counts"]
                assert dataset.version == 2
            else:
                break
    assert 8 < kill_at < 99


def test_a_mended_archive_is_read_again(tmp_path: Path) -> None:
    files = [(f"{'ab'[number % 2]}/{number:02d}.png", png(number)) for number in range(30)]
    whole = factories.make_zip(files)
    broken = [(key, data[:60] if number in (3, 8) else data) for number, (key, data) in enumerate(files)]
    (tmp_path / "x.zip").write_bytes(factories.make_zip(broken))
    source, out = str(tmp_path / "x.zip"), str(tmp_path / "out")
    stage.run(IngestConfig(source=source, out=out), in_process)
    assert open_dataset(out).catalog["rows"] == 28
    (tmp_path / "x.zip").write_bytes(whole)
    done = stage.run(IngestConfig(source=source, out=out, retry_failed=True), in_process)
    assert (done.version, open_dataset(out).catalog["rows"]) == (2, 30)
    assert list(inspect.verify(open_dataset(out))) == []
    stage.run(IngestConfig(source=source, out=str(tmp_path / "fresh")), in_process)
    assert open_dataset(out).fingerprint == open_dataset(str(tmp_path / "fresh")).fingerprint


def test_two_retries_at_once_are_one(root: Path) -> None:
    picture(2003).save(root / "set/dog/03.png")

    def meanwhile(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        yield from in_process(job, units)
        accept(str(root / "out"), "lost", wanted=lambda row: row["key"] == "dog/03.png")

    config = IngestConfig(source=str(root / "set"), out=str(root / "out"), retry_failed=True, moved=True)
    with pytest.raises(PublishConflict, match="1 of the members that were read again are not refused any more"):
        stage.run(config, meanwhile)
    assert "dog/03.png" not in keys(checked(root))


def test_retry_keeps_the_settings_of_the_dataset(root: Path, tmp_path: Path) -> None:
    picture(8).save(root / "set/cat/08.png")
    retry(root)
    assert "cat/08.png" in keys(checked(root))
    with pytest.raises(InputError, match="holds nothing of other that could be tried again"):
        retry(root, source_name="other")
    shutil.copytree(root / "set", tmp_path / "fresh")
    with pytest.raises(InputError, match="holds nothing of fresh that could be tried again") as caught:
        stage.run(
            IngestConfig(source=str(tmp_path / "fresh"), out=str(tmp_path / "none"), retry_failed=True), in_process
        )
    assert caught.value.mend == f"resnet ingest {tmp_path / 'fresh'} --out {tmp_path / 'none'}"


def test_accepted_losses_count_no_longer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(root / "out")
    assert run_command(["data", "quarantine", "accept", out, "--code", "TRUNCATED", "--reason", "scanner"]) == 0
    assert "out: 3 accepted as lost, published as v2" in capsys.readouterr().out
    dataset = checked(root)
    assert dataset.catalog["counts"]["accepted"] == 3
    assert dataset.fingerprint == open_dataset(f"{out}@v1").fingerprint
    assert [row["reason"] for row in read_quarantine(dataset)] == ["NOT_IMAGE", "TOO_SMALL"]
    assert {row["accepted"] for row in read_quarantine(dataset, accepted=True)} == {"scanner"}
    assert len(read_quarantine(open_dataset(f"{out}@v1"))) == 5
    assert run_command(["data", "check", out, "max_quarantined_fraction=0.06"]) == 0
    assert run_command(["data", "check", f"{out}@v1", "max_quarantined_fraction=0.06"]) == 3
    capsys.readouterr()
    assert run_command(["data", "quarantine", "list", out, "--accepted"]) == 0
    assert "3 members accepted as lost" in capsys.readouterr().out
    assert run_command(["data", "quarantine", "accept", out, "--code", "TRUNCATED", "--reason", "x"]) == 2
    assert "nothing was refused as TRUNCATED" in capsys.readouterr().err
    assert run_command(["data", "quarantine", "accept", out, "cat/07.png", "--reason", "a text"]) == 0
    assert run_command(["data", "quarantine", "accept", out, "cat/07.png", "--reason", "a text"]) == 2
    assert "cat/07.png was not refused in" in capsys.readouterr().err
    assert run_command(["data", "quarantine", "accept", out, "--reason", "x"]) == 2
    # what is accepted is not tried again
    for number in (3, 4, 5):
        picture(number + 500).save(root / f"set/dog/{number:02d}.png")
    retry(root)
    assert checked(root).catalog["rows"] == 35


def test_the_commands_list_and_show(template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = str(template / "out"), tmp_path / "refused.html"
    assert run_command(["data", "quarantine", "list", out]) == 0
    shown = capsys.readouterr().out
    assert "quarantine: " + out + "@v1, 5 members refused" in shown
    assert "TRUNCATED  dog    3        dog/03.png" in shown
    assert f"resnet data quarantine retry {out}" in shown
    assert run_command(["data", "quarantine", "list", out, "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [each["members"] for each in groups] == [3, 1, 1]
    assert groups[0]["examples"][0]["bytes_sha256"]
    assert "thumbnail" not in groups[0]["examples"][0]  # none is read for a list
    assert run_command(["data", "quarantine", "show", out, "cat/08.png"]) == 0
    shown = capsys.readouterr().out
    assert "TOO_SMALL  cat/08.png" in shown
    assert "size_bytes" in shown
    assert run_command(["data", "quarantine", "show", out, "--page", str(page)]) == 0
    html = page.read_text()
    assert "dog/03.png" in html
    assert html.count("<img") == 1  # of the small one; the others do not decode
    assert "://" not in html.replace("http://www.w3.org", "")


@pytest.mark.parametrize("words", [("retry",), ("accept", "--all", "--reason", "x")], ids=["retry", "accept"])
def test_what_is_published_after_the_newest_names_no_version(
    words: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["data", "quarantine", words[0], f"{root}/out@v1", *words[1:]]) == 2
    assert f"out@v1 names a version, and only the newest goes on\n  mend:  name the dataset: {root}/out" in (
        capsys.readouterr().err
    )
    assert open_dataset(str(root / "out")).version == 1


def test_a_key_of_two_sources_is_accepted_in_both(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "other/cat").mkdir(parents=True)
    (root / "other/cat/07.png").write_bytes(b"no image either, and long enough to be none")
    picture(2000).save(root / "other/cat/01.png")
    config = IngestConfig(source=str(root / "other"), out=str(root / "out"), append=True, max_quarantined_fraction=0.9)
    stage.run(config, in_process)
    assert run_command(["data", "quarantine", "accept", str(root / "out"), "cat/07.png", "--reason", "x"]) == 0
    shown = capsys.readouterr().out
    assert "out: 2 accepted as lost, published as v3" in shown
    assert "cat/07.png is of 2 sources (other, set); an image id names one member" in shown


def test_retry_from_the_command_line(root: Path, template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # nothing was mended: no process is started for what the listing alone decides, and nothing is published
    assert run_command(["data", "quarantine", "accept", str(root / "out"), "--all", "--reason", "x"]) == 0
    capsys.readouterr()
    assert run_command(["data", "quarantine", "retry", str(root / "out")]) == 0
    assert "0 refused, and none of them passes now; nothing was published" in capsys.readouterr().out
    assert run_command(["ingest", str(template / "set"), "--out", str(root / "out"), "--retry-failed"]) == 0
    assert "already done, nothing was run" in capsys.readouterr().out


def test_bias_names_the_classes_that_lost_most() -> None:
    even = find_bias({"cat": 90, "dog": 180, "eel": 270}, {"cat": 10, "dog": 20, "eel": 30})
    assert even is not None
    assert even.chance == pytest.approx(1.0)
    assert even.classes == []
    # 2 x 2, by hand: 30 of 100 against 10 of 100, expected 20 each: chi-square 2 * 100 / 20 + 2 * 100 / 80 = 12.5
    biased = find_bias({"cat": 70, "dog": 90}, {"cat": 30, "dog": 10})
    assert biased is not None
    assert biased.chance == pytest.approx(0.000407, rel=1e-3)
    assert biased.classes == [("cat", 30, 100)]
    assert biased.words.startswith("some classes lost more images than others (cat 30 of 100; chi-square, p = 0.0004)")
    assert find_bias({"cat": 70, "dog": 90}, {"cat": 3}) is None  # too few to say
    assert find_bias({"cat": 100}, {"cat": 20}) is None
    # a class that was refused whole counts too, and many small ones are tested as one
    whole = find_bias({"cat": 100, **{f"c{i}": 2 for i in range(40)}}, {"gone": 40, "c1": 1})
    assert whole is not None
    assert whole.classes == [("gone", 40, 40)]
