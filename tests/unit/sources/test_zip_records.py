"""A zip's directory read as columns is the directory read record by record, whatever is in it."""

from __future__ import annotations

import io
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources import zip_directory
from pipelines.sources.zip_directory import _central_records, _walk_records

NAMES = st.sampled_from(["a/1.jpg", "a/", "b/ü.png", "PK\1\2.jpg", "c", "x/y/z.txt", "long" * 20 + ".jpg"])
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"PK\1\2", b"data" * 9]), st.booleans()), max_size=8)


def directory_of(members: list[tuple[str, bytes, bool]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for number, (name, data, is_odd) in enumerate(members):
            info = zipfile.ZipInfo(f"{number}{name}")
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            info.external_attr = (0o120777 if is_odd else 0o100644) << 16  # a link, or a file
            info.comment = b"PK\1\2 hides here" if is_odd and number % 3 == 0 else b""
            target.writestr(info, data)
        start = target.start_dir
    return out.getvalue()[start:-22]


@given(MEMBERS, st.integers(0, 3), st.binary(max_size=60))
def test_columns_and_records_agree(members: list[tuple[str, bytes, bool]], prefix: int, trash: bytes) -> None:
    directory = directory_of(members)
    whole = list(_walk_records(directory, prefix, "x"))
    assert len(whole) == len(members)
    assert _central_records(directory, prefix, "x") == whole
    for other in (directory + trash, directory[: len(directory) * 2 // 3], trash):
        assert _central_records(other, prefix, "x") == list(_walk_records(other, prefix, "x"))


def test_large_and_far_members_take_the_careful_way() -> None:
    directory = bytearray(directory_of([("a.jpg", b"data", False), ("b.jpg", b"data", False)]))
    size_at = 24  # of the uncompressed size in the first record
    directory[size_at : size_at + 4] = (zip_directory.MAX_MEMBER_BYTES + 1).to_bytes(4, "little")
    first, second = _central_records(bytes(directory), 0, "x")
    assert first[5] == "BOMB_RATIO"
    assert second[5] == ""
