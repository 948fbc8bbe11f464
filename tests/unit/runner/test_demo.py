"""The demo's archive: the same bytes always, and three faults that lie where they must."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipelines.errors import ConfigError
from pipelines.image.decode import decode_image
from pipelines.image.header import RefusedImage
from pipelines.ingest.config import SplitConfig
from pipelines.runner.demo import DemoConfig, encode_grey_png, make_members, make_zip, run, splits_of

SPLIT = SplitConfig(train=0.7, val=0.1, test=0.2)


def test_the_png_writer_agrees_with_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 11), dtype=np.uint8)
    data = encode_grey_png(pixels)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels)
    assert encode_grey_png(pixels) == data


@pytest.mark.parametrize("seed", range(5))
def test_the_faults_lie_where_they_must(seed: int) -> None:
    config = DemoConfig(split=SPLIT.model_copy(update={"seed": seed}))
    members, planted = make_members(config)
    splits = splits_of(members, config)
    assert splits[planted.original] == "train"
    assert splits[planted.copy] == "test"
    assert splits[planted.mislabelled] == "test"
    assert members[planted.copy] == members[planted.original]
    wrong, name = planted.mislabelled.split("/")
    assert wrong == planted.wrong_label != planted.true_label == str(load_digits().target[int(name[:4])])
    with pytest.raises(RefusedImage) as refused:
        decode_image(members[planted.truncated])
    assert refused.value.reason == "TRUNCATED"


def test_all_digits_are_there_once_besides_the_faults() -> None:
    members, _ = make_members(DemoConfig(split=SPLIT))
    assert len(members) == 1797 + 2
    digests = [hashlib.sha256(data).hexdigest() for data in members.values()]
    assert len(set(digests)) == 1797 + 1  # the copy has its original's bytes
    splits = list(splits_of(members, DemoConfig(split=SPLIT)).values())
    assert splits.count("test") == 360


def test_a_zip_is_a_function_of_its_members() -> None:
    members = {"1/b.png": b"b", "1/a.png": b"a"}
    data = make_zip(members)
    assert make_zip(members) == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["1/b.png", "1/a.png"]


def test_a_split_without_test_is_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        make_members(DemoConfig(split=SplitConfig(train=0.9, val=0.1, test=0.0)))
    assert raised.value.what.startswith("the demo's faults cannot be planted: no image lies in test")


def test_the_stage_writes_once_and_is_skipped_after(tmp_path: Path) -> None:
    config = DemoConfig(split=SPLIT, out=str(tmp_path / "demo"))
    first, second = run(config), run(config)
    assert (first.skipped, second.skipped) == (False, True)
    assert first.key == second.key
    assert first.figures == second.figures == {"members": 1799}
    with zipfile.ZipFile(tmp_path / "demo" / "digits.zip") as archive:
        assert len(archive.namelist()) == 1799
