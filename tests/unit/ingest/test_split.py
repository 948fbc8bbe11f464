"""The split: pure, exact per class, fair over classes, stable for newcomers."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.ingest.config import SplitConfig
from pipelines.ingest.split import SplitPlan, make_split_plan, split_hash
from pipelines.sources.base import Entry, Found, make_listing


def entries(keys: Sequence[str]) -> tuple[Entry, ...]:
    return make_listing("source", [Found(key.encode(), 1) for key in keys]).entries


def class_keys(counts: dict[str, int]) -> list[str]:
    return [f"{name}/{i}.jpg" for name, count in counts.items() for i in range(count)]


def divide(plan: SplitPlan, listed: Sequence[Entry]) -> dict[str, str]:
    return {entry.key: plan.split_of(entry.image_id, entry.label, entry.given_split) for entry in listed}


def counts_of(plan: SplitPlan, listed: Sequence[Entry]) -> Counter[str]:
    return Counter(divide(plan, listed).values())


def test_counts_are_exact_per_class() -> None:
    listed = entries(class_keys({"a": 5000, "b": 50, "c": 10}))
    plan = make_split_plan(listed, SplitConfig(train=0.8, val=0.1, test=0.1))
    by_class = Counter((entry.label, divide(plan, [entry])[entry.key]) for entry in listed)
    assert (by_class["a", "train"], by_class["a", "val"], by_class["a", "test"]) == (4000, 500, 500)
    assert (by_class["b", "train"], by_class["b", "val"], by_class["b", "test"]) == (40, 5, 5)
    assert (by_class["c", "train"], by_class["c", "val"], by_class["c", "test"]) == (8, 1, 1)
    assert plan.by == "stratified"


def test_many_small_classes_fill_every_split() -> None:
    # plain largest remainder gives a thousand classes of five an empty test split
    listed = entries(class_keys({f"class{i}": 5 for i in range(1000)}))
    counts = counts_of(make_split_plan(listed, SplitConfig()), listed)
    assert counts["train"] == 4000
    assert abs(counts["val"] - 500) <= 1
    assert abs(counts["test"] - 500) <= 1


def test_a_class_of_one_is_for_training() -> None:
    for seed in range(20):
        listed = entries(class_keys({"a": 40, "rare": 1, "also": 1}))
        where = divide(make_split_plan(listed, SplitConfig(seed=seed)), listed)
        assert where["rare/0.jpg"] == where["also/0.jpg"] == "train"


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcxyz07", min_size=1, max_size=4), st.integers(1, 40), min_size=1, max_size=12),
       st.integers(0, 5), st.sampled_from([(0.1, 0.1), (0.0, 0.2), (0.25, 0.25), (0.3, 0.0)]))  # fmt: skip
def test_split_is_a_function_of_ids_alone(counts: dict[str, int], seed: int, shares: tuple[float, float]) -> None:
    config = SplitConfig(val=shares[0], test=shares[1], seed=seed)
    listed = list(entries(class_keys(counts)))
    plan = make_split_plan(listed, config)
    where = divide(plan, listed)
    random.Random(seed).shuffle(listed)
    assert make_split_plan(listed, config) == plan
    assert divide(SplitPlan.from_json(json.loads(json.dumps(plan.to_json()))), listed) == where
    total = len(listed)
    for split, share in config.shares().items():
        # each class is off by less than one, and the deficits keep the sum near too
        assert abs(sum(value == split for value in where.values()) - share * total) < len(counts) * 0.75 + 1
        assert share > 0 or split not in where.values()


def test_newcomers_leave_the_others_where_they_are() -> None:
    listed = entries(class_keys({"a": 100}))
    plan = make_split_plan(listed, SplitConfig())
    before = divide(plan, listed)
    more = entries(class_keys({"a": 3000, "new": 500}))
    after = divide(plan, more)
    assert {key: after[key] for key in before} == before
    newcomers = Counter(value for key, value in after.items() if key not in before)
    # cut-offs are the nominal shares clamped into their gap, so newcomers divide nearly as asked for
    assert 0.7 < newcomers["train"] / len(after) < 0.9
    assert Counter(after[key] for key in after if key.startswith("new/"))["test"] > 25


def test_seed_changes_the_split() -> None:
    listed = entries(class_keys({"a": 100}))
    one, other = (divide(make_split_plan(listed, SplitConfig(seed=seed)), listed) for seed in (0, 1))
    assert one != other


def test_unlabelled_images_split_by_hash() -> None:
    listed = entries([f"{i}.jpg" for i in range(3000)])
    plan = make_split_plan(listed, SplitConfig())
    assert plan.by == "hash"
    counts = counts_of(plan, listed)
    assert 250 < counts["test"] < 350
    assert 250 < counts["val"] < 350


def test_given_splits_stand() -> None:
    keys = [f"{split}/{name}/{i}.jpg" for split in ("train", "val", "test") for name in "ab" for i in range(10)]
    listed = entries(keys)
    plan = make_split_plan(listed, SplitConfig())
    assert plan.by == "given"
    assert divide(plan, listed) == {key: key.partition("/")[0] for key in keys}


def test_a_missing_given_split_is_carved_out_of_train(caplog: pytest.LogCaptureFixture) -> None:
    keys = [f"{split}/{name}/{i}.jpg" for split in ("train", "test") for name in "ab" for i in range(90)]
    listed = entries(keys)
    plan = make_split_plan(listed, SplitConfig(train=0.8, val=0.1, test=0.1))
    where = divide(plan, listed)
    assert all(where[key] == "test" for key in keys if key.startswith("test"))
    assert Counter(where[key] for key in keys if key.startswith("train")) == {"train": 160, "val": 20}
    assert caplog.messages == ["the source has no val split: it is carved out of its training images"]


def test_ways_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_split_plan(entries(["a/1.jpg"]), SplitConfig(by="given"))
    assert str(caught.value) == (
        "ConfigError: split.by is given, and a/1.jpg lies in no train, val or test folder\n"
        "  mend:  split.by=stratified divides the images by class"
    )
    with pytest.raises(ConfigError, match=r"split.by is stratified, and no image has a label"):
        make_split_plan(entries(["1.jpg"]), SplitConfig(by="stratified"))


def test_shares_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"split.train \+ split.val \+ split.test is 1.1; it must be 1"):
        SplitConfig(train=0.9)
    with pytest.raises(ValueError, match=r"split.val \+ split.test is 1; nothing is left to train on"):
        SplitConfig(val=0.5, test=0.5)
    assert SplitConfig(test=0.2).train == 0.7
    assert SplitConfig(test=0.2) == SplitConfig(train=0.7, val=0.1, test=0.2)


def test_hash_is_pinned() -> None:
    # datasets that stand depend on it
    assert f"{split_hash(0, '00' * 16):016x}" == "dbf1a07308156ad1"


def with_values(listed: Sequence[Entry], values: Sequence[str | None]) -> list[Entry]:
    return [entry._replace(carried=("x", value)) for entry, value in zip(listed, values, strict=True)]


CARRIED = ("other", "column")


def places(plan: SplitPlan, listed: Sequence[Entry]) -> dict[str, str]:
    return {entry.key: plan.place(entry, CARRIED) for entry in listed}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(0, 3), st.integers(0, 5))
def test_groups_stay_whole_and_newcomers_move_nobody(sizes: list[int], seed: int, alone: int) -> None:
    names = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    values: list[str | None] = [*names, *[None] * alone]
    listed = with_values(entries([f"{'ab'[i % 2]}/{i}.jpg" for i in range(len(values))]), values)
    config = SplitConfig(group="column", seed=seed)
    plan = make_split_plan(listed, config, CARRIED)
    assert plan.by == "group"
    where = places(plan, listed)
    of_group: dict[str, set[str]] = {}
    for entry in listed:
        of_group.setdefault(entry.carried[1] or entry.key, set()).add(where[entry.key])
    assert all(len(splits) == 1 for splits in of_group.values())
    shuffled = list(listed)
    random.Random(seed).shuffle(shuffled)
    assert make_split_plan(shuffled, config, CARRIED) == plan
    counts, total = Counter(where.values()), len(listed)
    assert counts["train"] > 0
    # a split takes groups until it has its share, so it is over by less than one group; train keeps the last one
    for reached, share in ((counts["test"], 0.1), (counts["test"] + counts["val"], 0.2)):
        assert reached < share * total + max(sizes)
        assert reached >= share * total - max(sizes)
    again = SplitPlan.from_json(json.loads(json.dumps(plan.to_json())))
    newcomer = listed[0]._replace(image_id="f" * 32, key="new.jpg")
    assert places(again, [*listed, newcomer]) == {**where, "new.jpg": where[listed[0].key] if names else "train"}


def test_a_group_is_one_however_it_is_written() -> None:
    names = [f"J\u00f6rg {number}" for number in range(60)]
    forms = [str, lambda name: f" {name}\u00a0", lambda name: unicodedata.normalize("NFD", name)]
    values = [form(name) for form in forms for name in names]
    listed = with_values(entries([f"{i}.jpg" for i in range(len(values))]), values)
    plan = make_split_plan(listed, SplitConfig(group="column"), CARRIED)
    where = list(places(plan, listed).values())
    assert where[:60] == where[60:120] == where[120:]
    assert Counter(where[:60]) == {"train": 48, "val": 6, "test": 6}
    blank = listed[0]._replace(carried=("x", " \t"))
    assert plan.place(blank, CARRIED) == plan.place(blank._replace(carried=("x", None)), CARRIED)  # none at all


def test_images_without_a_group_are_told(caplog: pytest.LogCaptureFixture) -> None:
    listed = with_values(entries([f"{i}.jpg" for i in range(100)]), ["p1"] * 40 + [""] * 60)
    plan = make_split_plan(listed, SplitConfig(by="group", group="column"), CARRIED)
    assert caplog.messages == ["60 of 100 images have no column: each is a group of its own"]
    assert len(set(list(places(plan, listed).values())[:40])) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2000, 2030), min_size=1, max_size=80), st.sampled_from(["number", "date", "zone"]))
def test_times_go_from_oldest_to_newest(years: list[int], written: str) -> None:
    texts = [{"number": f"{y}", "date": f"{y}-05-01", "zone": f"{y}-05-01T02:00:00+02:00"}[written] for y in years]
    listed = with_values(entries([f"a/{i}.jpg" for i in range(len(years))]), texts)
    config = SplitConfig(by="time", time="column")
    plan = make_split_plan(listed, config, CARRIED)
    where = [plan.place(entry, CARRIED) for entry in listed]
    rank = {"train": 0, "val": 1, "test": 2}
    ordered = sorted(zip(years, where, strict=True))
    assert [rank[split] for _, split in ordered] == sorted(rank[split] for split in where)
    assert len({(year, split) for year, split in ordered}) == len(set(years))  # equal times never straddle
    assert make_split_plan(listed[::-1], config, CARRIED) == plan
    largest = max(Counter(years).values())
    assert where.count("test") < 0.1 * len(years) + largest
    again = SplitPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert [again.place(entry, CARRIED) for entry in listed] == where
    assert again.split_of("x", value="1990" if written == "number" else "1990-01-01") == "train"


def test_times_that_are_none_are_refused() -> None:
    listed = with_values(entries([f"a/{i}.jpg" for i in range(4)]), ["2024-01", "2024-02-03", "yesterday", "2025"])
    config = SplitConfig(by="time", time="column")
    with pytest.raises(ConfigError) as caught:
        make_split_plan(listed, config, CARRIED)
    assert str(caught.value) == (
        "ConfigError: split.time is column, and a/2.jpg has 'yesterday' there, which is no time\n"
        "  mend:  write all times as numbers or all as ISO 8601, for example 2024-05-31 or 2024-05-31T14:00:00Z"
    )
    plan = make_split_plan([*listed[:2], listed[3]], config, CARRIED)
    plan.check(listed[:2], CARRIED)
    with pytest.raises(ConfigError, match=r"a/2.jpg has 'yesterday' there"):
        plan.check(listed, CARRIED)
    with pytest.raises(ConfigError, match=r"a/0.jpg has nothing there") as caught:
        make_split_plan(with_values(listed, [None, "1", "2", "nan"]), config, CARRIED)
    assert caught.value.mend == "give every image a time, or divide by something else: split.by"
    with pytest.raises(ConfigError, match="and an image has something there, which is no time"):
        make_split_plan(listed, config, CARRIED, tells_keys=False)
    with pytest.raises(ConfigError, match="and an image has something there, which is no time"):
        plan.check(listed, CARRIED, tells_keys=False)


def test_a_column_the_source_has_not_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_split_plan(entries(["a/1.jpg"]), SplitConfig(group="patient"), ("site",))
    assert str(caught.value) == (
        "ConfigError: split.group is patient, and the source has no such column; it has site\n"
        "  mend:  columns come from a table (labels=) or from Parquet; name one of them"
    )
    for wrong in ({"by": "hash", "group": "x"}, {"by": "group"}, {"group": "x", "time": "y"}, {"by": "time"}):
        with pytest.raises(ValueError, match=r"name a column for split.by=(group|time), and only then"):
            SplitConfig(**wrong)


def test_lists_of_labels_go_by_image_alone() -> None:
    listed = [entry._replace(label=("cat", "dog")) for entry in entries([f"{i}.jpg" for i in range(2000)])]  # type: ignore[arg-type]
    plan = make_split_plan(listed, SplitConfig())
    assert plan.by == "hash"
    with pytest.raises(ConfigError, match=r"split.by is stratified, and images have several labels each"):
        make_split_plan(listed, SplitConfig(by="stratified"))
    assert 150 < counts_of(plan, listed)["test"] < 250


def test_an_image_without_a_given_split_is_named_only_where_names_may_be_told() -> None:
    with pytest.raises(ConfigError, match=r"split\.by is given, and an image lies in no train, val or test folder"):
        make_split_plan(entries(["Jane Doe/1.jpg"]), SplitConfig(by="given"), tells_keys=False)
