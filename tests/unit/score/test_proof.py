import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import DataError
from pipelines.score import proof
from pipelines.score.proof import Tally, check_unit, check_whole
from pipelines.storage import Storage


def ids(start, stop):
    return [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(start, stop)]


def tally(*names):
    found = Tally()
    for name in names:
        found.add(name)
    return found


@pytest.fixture
def store(tmp_path):
    store = Storage.open(tmp_path)

    def write(path, names):
        sink = io.BytesIO()
        pq.write_table(pa.table({"image_id": names}), sink, row_group_size=7, write_page_checksum=True)
        store.put(path, sink.getvalue())

    store.write = write
    return store


def test_a_tally_does_not_depend_on_order_or_grouping():
    names = ids(0, 50)
    one, other = tally(*names[:20]), tally(*names[20:])
    one.merge(other)
    assert one == tally(*reversed(names))
    assert one.id_sum == sum(int(name, 16) for name in names) % 2**128


def test_a_lost_and_an_exchanged_member_are_noticed():
    names = ids(0, 5)
    check_unit(tally(*names), reversed(names), "here")
    with pytest.raises(DataError, match="5 members were read, and 4 stand against them"):
        check_unit(tally(*names), names[:4], "here")
    with pytest.raises(DataError, match="the 5 members that were read are not the 5 that stand against them"):
        check_unit(tally(*names), [*names[:4], ids(9, 10)[0]], "here")


@pytest.mark.parametrize("per_pass", [1000, 10])
def test_the_whole_passes_when_each_member_stands_once(store, monkeypatch, per_pass):
    monkeypatch.setattr(proof, "_IDS_PER_PASS", per_pass)
    store.write("a.parquet", ids(0, 30))
    store.write("b.parquet", ids(30, 55))
    check_whole(store, ["a.parquet", "b.parquet"], tally(*ids(0, 55)), listed=55)


@pytest.mark.parametrize("per_pass", [1000, 10])
def test_a_doubled_row_is_found_across_files(store, monkeypatch, per_pass):
    monkeypatch.setattr(proof, "_IDS_PER_PASS", per_pass)
    store.write("a.parquet", ids(0, 30))
    store.write("b.parquet", ids(28, 55))
    with pytest.raises(DataError, match="2 rows stand for members that another row stands for"):
        check_whole(store, ["a.parquet", "b.parquet"], tally(*ids(0, 30), *ids(28, 55)))


def test_a_missing_file_part_and_a_wrong_listing_are_found(store):
    store.write("a.parquet", ids(0, 30))
    with pytest.raises(DataError, match="31 members were read but 30 rows were written"):
        check_whole(store, ["a.parquet"], tally(*ids(0, 31)))
    with pytest.raises(DataError, match="the source lists 29 members but 30 were read"):
        check_whole(store, ["a.parquet"], tally(*ids(0, 30)), listed=29)


def test_sums_are_exact_for_the_largest_ids():
    top = "f" * 32
    raw = np.frombuffer(bytes.fromhex(top * 1000), dtype=">u8").reshape(-1, 2)
    assert proof._sum(raw) == 1000 * (2**128 - 1)
