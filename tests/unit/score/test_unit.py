import contextlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset.attempt import begin_attempt
from pipelines.dataset.receipt import read_receipts
from pipelines.errors import DataError
from pipelines.image.preprocess import Preprocess
from pipelines.score.model import Model, PackageRef
from pipelines.score.rows import Row, make_table
from pipelines.score.unit import FailedAlone, ScoreJob, score_unit
from pipelines.sources.base import Found, Source, Unit, make_listing, member_of
from pipelines.storage import Storage

CLASSES = ("dark", "grey", "light")
RUN = "0123-0"


def png(level, size=4):
    sink = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


class MemorySource(Source):
    """A source whose members are given."""

    def __init__(self, members, name="photos"):
        super().__init__("memory", name)
        self.members = members

    def _list(self):
        return make_listing(self.name, [Found(key.encode(), len(data or b"")) for key, data in self.members])

    def listing_digest(self):
        return "d"

    def units(self):
        return [Unit(0, self.listing().entries)]

    def open(self, unit):
        data = [data for _, data in self.members]
        for entry, bytes_ in zip(unit.entries, data, strict=True):
            yield member_of(entry, bytes_, "" if bytes_ is not None else "CRC", "" if bytes_ is not None else "bad sum")


def brightness(pixels):
    """A network whose answer follows the mean level of a picture."""
    level = pixels.reshape(len(pixels), -1).mean(axis=1) / 255
    scores = np.stack([1 - level, np.full_like(level, 0.2), level], axis=1).astype(np.float32)
    return scores / scores.sum(axis=1, keepdims=True)


def model(forward=brightness):
    return Model(forward, Preprocess(), CLASSES)


def job(source, out, batch_size=3, top_k=2):
    package = PackageRef("nowhere", "lamps", "3", "f" * 64, "float32", "cpu")
    return ScoreJob(source, str(out), RUN, package, top_k, batch_size)


def rows(out, receipt):
    return pq.read_table(out / receipt["file"]["path"]).to_pylist()


MIXED = [
    ("a/1.png", png(250)),
    ("a/2.png", b"no image at all"),
    ("b/3.png", png(10)),
    ("b/4.png", png(10, size=6)),
    ("b/3.png", png(120)),
    ("c/5.png", None),
    ("c/6.png", b""),
    ("c/7.png", png(90, size=6)),
]


def test_every_member_gets_one_row_in_order_with_an_answer_or_a_reason(tmp_path):
    source = MemorySource(MIXED)
    receipt = score_unit(source.units()[0], job(source, tmp_path), model())
    found = rows(tmp_path, receipt)
    assert [row["key"] for row in found] == [key for key, _ in MIXED]
    assert [row["image_id"] for row in found] == [entry.image_id for entry in source.listing().entries]
    assert [row["reason"] for row in found] == [None, "NOT_IMAGE", None, None, None, "CRC", "EMPTY", None]
    assert [row["names"] and row["names"][0] for row in found] == [
        "light", None, "dark", "dark", "dark", None, None, "dark",
    ]  # fmt: skip
    assert found[5]["message"] == "bad sum"
    assert [row["occurrence"] for row in found] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert {(row["model_name"], row["model_version"], row["model_sha256"]) for row in found} == {
        ("lamps", "3", "f" * 64)
    }
    assert all((row["names"] is None) == (row["reason"] is not None) for row in found)
    assert receipt["members"] == 8
    assert receipt["reasons"] == {"CRC": 1, "EMPTY": 1, "NOT_IMAGE": 1}
    assert read_receipts(Storage.open(tmp_path), RUN)[0] == receipt


def test_probabilities_are_the_networks_and_sorted(tmp_path):
    source = MemorySource(MIXED[:1])
    row = rows(tmp_path, score_unit(source.units()[0], job(source, tmp_path), model()))[0]
    expected = brightness(np.full((1, 4, 4, 3), 250, np.uint8))[0]
    assert row["names"] == ["light", "grey"]
    assert row["probabilities"] == [pytest.approx(expected[2], abs=0), pytest.approx(expected[1], abs=0)]


def test_equal_probabilities_keep_the_order_of_the_classes(tmp_path):
    source = MemorySource(MIXED[:1])
    even = model(lambda pixels: np.full((len(pixels), 3), 1 / 3, np.float32))
    row = rows(tmp_path, score_unit(source.units()[0], job(source, tmp_path, top_k=9), even))[0]
    assert row["names"] == list(CLASSES)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(tmp_path, batch_size):
    source = MemorySource(MIXED)
    one = score_unit(source.units()[0], job(source, tmp_path / "one"), model())
    other = score_unit(source.units()[0], job(source, tmp_path / "other", batch_size), model())
    assert one["file"]["fingerprint"] == other["file"]["fingerprint"]
    assert one["file"]["sha256"] == other["file"]["sha256"]


def test_a_second_attempt_takes_the_receipt_that_stands(tmp_path):
    source = MemorySource(MIXED)
    first = score_unit(source.units()[0], job(source, tmp_path), model())
    second = score_unit(source.units()[0], job(source, tmp_path), model())
    assert second == first
    assert len(list((tmp_path / "data" / RUN).iterdir())) == 2


def test_a_member_that_the_network_raises_for_is_set_aside_alone(tmp_path):
    def fragile(pixels):
        if (pixels == 10).any():
            raise RuntimeError("weird picture\nwith details")
        return brightness(pixels)

    source = MemorySource(MIXED)
    found = rows(tmp_path, score_unit(source.units()[0], job(source, tmp_path, 100), model(fragile)))
    assert [row["reason"] for row in found] == [
        None, "NOT_IMAGE", "MODEL_ERROR", "MODEL_ERROR", None, "CRC", "EMPTY", None,
    ]  # fmt: skip
    assert found[2]["message"] == "weird picture"


def test_a_network_that_raises_for_all_is_a_fault_of_its_own(tmp_path):
    def broken(pixels):
        raise RuntimeError("out of memory")

    source = MemorySource([("a.png", png(1)), ("b.png", png(2))])
    with pytest.raises(RuntimeError, match="out of memory"):
        score_unit(source.units()[0], job(source, tmp_path), model(broken))
    assert read_receipts(Storage.open(tmp_path), RUN) == {}


def test_an_answer_that_is_no_number_is_no_prediction(tmp_path):
    source = MemorySource([("a.png", png(1)), ("b.png", png(200))])

    def half(pixels):
        answer = brightness(pixels)
        answer[0] = np.nan
        return answer

    found = rows(tmp_path, score_unit(source.units()[0], job(source, tmp_path), model(half)))
    assert [row["reason"] for row in found] == ["MODEL_ERROR", None]
    assert found[0]["message"] == "the network's answer is not a finite number"


def die(store, *, times, driver=""):
    for number in range(times):
        with contextlib.suppress(KeyboardInterrupt), begin_attempt(store, RUN, 0, driver) as attempt:
            assert attempt.died == number
            raise KeyboardInterrupt


def test_an_error_is_no_death(tmp_path):
    store = Storage.open(tmp_path)
    with pytest.raises(DataError), begin_attempt(store, RUN, 0):
        raise DataError("the store was away")
    with begin_attempt(store, RUN, 0) as attempt:
        assert attempt.died == 0
    assert store.list() == []


def test_deaths_are_counted_by_unit(tmp_path):
    store = Storage.open(tmp_path)
    die(store, times=2)
    for unit, died in ((1, 0), (0, 2), (0, 2)):
        with begin_attempt(store, RUN, unit) as attempt:
            assert attempt.died == died


def test_what_ended_with_another_driver_is_no_death(tmp_path):
    store = Storage.open(tmp_path)
    die(store, times=2, driver="one")
    with begin_attempt(store, RUN, 0, "other") as attempt:
        assert attempt.died == 0


def test_after_two_deaths_members_are_scored_alone_and_the_culprit_is_named(tmp_path):
    source = MemorySource(MIXED)
    asked = []

    def alone(data):
        asked.append(data)
        if data == MIXED[2][1]:
            raise FailedAlone("KILLED_WORKER", "its process died (WorkerCrashedError)")
        return model().predict_one(data) if data not in (b"", MIXED[1][1]) else refuse()

    def refuse():
        raise FailedAlone("NOT_IMAGE", "no image")

    told = job(source, tmp_path)
    die(Storage.open(tmp_path), times=2, driver=told.driver)
    found = rows(tmp_path, score_unit(source.units()[0], told, model(), alone))
    assert len(asked) == 7
    assert found[2]["reason"] == "KILLED_WORKER"
    assert found[2]["message"] == "its process died (WorkerCrashedError)"
    assert [row["names"] is not None for row in found] == [True, False, False, True, True, False, False, True]


def test_one_death_is_no_reason_for_care(tmp_path):
    source = MemorySource(MIXED)
    told = job(source, tmp_path)
    die(Storage.open(tmp_path), times=1, driver=told.driver)

    def alone(data):
        raise AssertionError("not yet")

    assert score_unit(source.units()[0], told, model(), alone)["members"] == 8


def test_a_source_that_loses_a_member_is_caught(tmp_path):
    class Forgetful(MemorySource):
        def open(self, unit):
            yield from list(super().open(unit))[:-1]

    source = Forgetful(MIXED)
    with pytest.raises(DataError, match="7 members were read, and 8 stand against them"):
        score_unit(source.units()[0], job(source, tmp_path), model())
    assert read_receipts(Storage.open(tmp_path), RUN) == {}


def test_of_several_labels_a_row_lists_all_above_the_threshold(tmp_path):
    source = MemorySource([("a.png", png(250)), ("b.png", b"no image"), ("c.png", png(128))])

    def yes_or_no(pixels):
        level = pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True) / 255
        return np.concatenate([1 - level, np.full_like(level, 0.5), level], axis=1).astype(np.float32)

    several = Model(yes_or_no, Preprocess(), CLASSES, threshold=0.5)
    receipt = score_unit(source.units()[0], job(source, tmp_path, top_k=1), several)
    found = rows(tmp_path, receipt)
    assert [row["labels"] for row in found] == [["light", "grey"], None, ["light", "grey"]]
    assert [row["names"] for row in found] == [["light"], None, ["light"]]
    single = rows(tmp_path / "one", score_unit(source.units()[0], job(source, tmp_path / "one"), model()))
    assert "labels" not in single[0]


def test_labels_are_those_that_a_served_model_gives(monkeypatch):
    monkeypatch.setattr("pipelines.package.predictor.labels_above", lambda *_: ["as served"])
    settled = [Row("0" * 32, "a", 0, probabilities=np.array([0.9], np.float32))]
    table = make_table(settled, "s", ("m", "1", "0" * 64), ("light",), 1, 0.5)
    assert table.column("labels").to_pylist() == [["as served"]]
