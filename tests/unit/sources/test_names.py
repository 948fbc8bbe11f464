"""Names: labels, given splits, what is ignored, what is unsafe, and what is not UTF-8."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.names import (
    escaped_bytes,
    ignored_as,
    is_plain,
    labels_and_splits,
    name_fault,
    outside_splits,
    readable_key,
)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["cat/1.jpg", "dog/2.jpg"], [("cat", None), ("dog", None)]),
        (["set/cat/1.jpg", "./set/dog/2.jpg"], [("cat", None), ("dog", None)]),
        (["1.jpg", "cat/2.jpg"], [(None, None), ("cat", None)]),
        (["train/cat/1.jpg", "test/cat/2.jpg"], [("cat", "train"), ("cat", "test")]),
        (["a/Training/cat/1.jpg", "a/valid/dog/2.jpg"], [("cat", "train"), ("dog", "val")]),
        (["train/cat/1.jpg", "test/2.jpg"], [("cat", "train"), (None, "test")]),
        (["train/1.jpg", "car/2.jpg"], [("train", None), ("car", None)]),
        (["train/train/1.jpg", "test/car/2.jpg"], [("train", "train"), ("car", "test")]),
        (["007/1.jpg", "no/1.jpg", "1e3/1.jpg"], [("007", None), ("no", None), ("1e3", None)]),
        ([], []),
    ],
)
def test_labels_and_given_splits(keys: list[str], expected: list[tuple[str | None, str | None]]) -> None:
    assert labels_and_splits(keys) == expected


def test_what_is_refused_has_no_say_in_what_a_folder_means() -> None:
    keys = ["train/cat/1.jpg", "../evil.jpg", "test/cat/2.jpg"]
    assert labels_and_splits(keys) == [("cat", None), ("..", None), ("cat", None)]
    assert labels_and_splits(keys, [False, True, False]) == [("cat", "train"), ("..", None), ("cat", "test")]


@pytest.mark.parametrize(
    ("keys", "stray"),
    [
        (["train/cat/1.jpg", "test/cat/2.jpg", "cat/3.jpg"], "cat/3.jpg"),
        (["train/cat/1.jpg", "test/cat/2.jpg"], ""),
        (["train/1.jpg", "car/2.jpg"], ""),  # one such folder may as well be a class
        ([], ""),
    ],
)
def test_the_image_that_keeps_split_folders_from_counting(keys: list[str], stray: str) -> None:
    assert outside_splits(keys) == stray


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("a/1.jpg", ""),
        ("a/noextension", ""),
        ("a/photo.weird", ""),
        ("__MACOSX/a/._1.jpg", "system files"),
        ("a/._1.jpg", "system files"),
        ("a/.DS_Store", "system files"),
        ("Thumbs.db", "system files"),
        ("a/.hidden.jpg", "hidden files"),
        ("labels.csv", ".csv files"),
        ("README", "documents"),
        ("LICENSE.md", ".md files"),
    ],
)
def test_ignored(key: str, kind: str) -> None:
    assert ignored_as(key) == kind


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"a/1.jpg", ""),
        (b"a..b/1..jpg", ""),
        (b"../../evil.jpg", "UNSAFE_NAME"),
        (b"a/../../evil.jpg", "UNSAFE_NAME"),
        (b"..\\..\\evil.jpg", "UNSAFE_NAME"),
        (b"/tmp/evil.jpg", "UNSAFE_NAME"),
        (b"C:\\evil.jpg", "UNSAFE_NAME"),
        (b"a\0b.jpg", "UNSAFE_NAME"),
        (b"d/" * 600 + b"x.jpg", "NAME_LONG"),
        (b"a/inner.tar", "NESTED"),
        (b"a/inner.ZIP", "NESTED"),
    ],
)
def test_unsafe_names(name: bytes, reason: str) -> None:
    assert name_fault(name)[0] == reason


def test_escaped_names_are_readable() -> None:
    assert readable_key(b"a/\xff\xfe.jpg") == ("a/\\xff\\xfe.jpg", True)
    assert readable_key("a/ü.jpg".encode()) == ("a/ü.jpg", False)


@given(st.binary(max_size=40))
def test_escaped_names_are_reversible(name: bytes) -> None:
    key, is_escaped = readable_key(name)
    key.encode()  # never a surrogate, so that Parquet takes it
    assert (escaped_bytes(key) if is_escaped else key.encode()) == name


PARTS = st.sampled_from(["a", "train", "__MACOSX", "..", ".", "", "readme", "README", "x y", "_b-1", ".hid", "C:", "é"])
ENDINGS = st.sampled_from([".jpg", ".JPEG", ".png", "", ".txt", ".zip", ".jpg.txt", ".jpg/", "..jpg"])


@given(st.lists(PARTS, min_size=1, max_size=4), st.sampled_from(["/", "\\"]), ENDINGS)
def test_plain_names_are_what_every_rule_would_let_pass(parts: list[str], separator: str, ending: str) -> None:
    name = separator.join(parts) + ending
    if is_plain(name.encode()):
        assert ignored_as(name) == ""
        assert name_fault(name.encode()) == ("", "")
        assert readable_key(name.encode()) == (name, False)
    assert is_plain(b"cats/0001 a.jpg")
    assert not is_plain(b"cats/" + b"x" * 1_100 + b".jpg")
