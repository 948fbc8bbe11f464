"""Rules that a dataset must keep before it is published; each is a figure, a bound and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from pydantic import ValidationError

from pipelines.dataset.leaks import Leaks, find_leaks
from pipelines.dataset.properties import Properties, read_properties
from pipelines.dataset.reader import Dataset
from pipelines.errors import ConfigError, DataError
from pipelines.ingest.config import CheckConfig

_SHOWN = 3
_EXAMPLE = "for example min_images_per_class=10 or max_near_leak_fraction=0.01"


@dataclass(frozen=True)
class Finding:
    """What a rule measured.

    Attributes:
        rule: its name.
        level: error or warn.
        figure: the measure.
        bound: what is allowed.
        is_kept: whether the figure keeps within the bound.
        words: the figure in words, with what it is of.
        mend: what helps where it does not.
    """

    rule: str
    level: str
    figure: float
    bound: float
    is_kept: bool
    words: str
    mend: str

    def __str__(self) -> str:
        side = "least" if self.rule.startswith("min_") else "most"
        return f"{self.rule}: {self.words}; at {side} {self.bound:g} is wanted ({self.mend})"


def run_checks(rules: Sequence[CheckConfig], dataset: Dataset) -> list[Finding]:
    """Measure every rule on a version, which may be unpublished; only small columns are read, and only where needed.

    Raises:
        ConfigError: a rule names a property that the dataset has not.
    """
    measures = _Measures(dataset)
    return [finding for rule in rules for finding in measures.find(rule)]


def read_rules(words: Sequence[str], dataset: Dataset) -> list[CheckConfig]:
    """Return the rules written as `rule=bound` or `rule.property=bound`; without any, those of the dataset's ingest.

    Raises:
        ConfigError: a word is no rule, or there is none at all.
    """
    given: list[dict[str, object]] = []
    for word in words:
        name, separator, bound = word.partition("=")
        rule, _, of = name.partition(".")
        try:
            given.append({"rule": rule, "property": of, "bound": float(bound)})
        except ValueError:
            what = f"the bound {bound!r} of {name} is no number" if separator else f"{word!r} is no rule=bound"
            raise ConfigError(what, mend=_EXAMPLE) from None
    if not words:
        given = dataset.catalog["config"].get("checks", [])
    if not given:
        raise ConfigError(
            f"{dataset.ref} was made without checks, and none is named",
            mend=f"name some: resnet data check {dataset.ref} min_images_per_class=10 max_near_leak_fraction=0.01",
        )
    return [_validated(values) for values in given]


def _validated(values: dict[str, object]) -> CheckConfig:
    try:
        return CheckConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        fault = error.errors()[0]
        known = get_args(CheckConfig.model_fields["rule"].annotation)
        if fault["loc"] == ("rule",):
            raise ConfigError(f"there is no rule {values['rule']!r}", mend=f"rules are {', '.join(known)}") from error
        if fault["loc"] == ("bound",):
            what = f"the bound {values['bound']} of {values['rule']} is no number from 0 on"
            raise ConfigError(what, mend=_EXAMPLE) from error
        raise ConfigError(fault["msg"].removeprefix("Value error, "), mend=_EXAMPLE) from error


def hold(rules: Sequence[CheckConfig], dataset: Dataset) -> list[str]:
    """Check a dataset that is about to be published; return the sentences of the rules at `warn` that fail.

    Raises:
        DataError: a rule at `error` fails; all that do are named.
        ConfigError: a rule names a property that the dataset has not.
    """
    failed = [finding for finding in run_checks(rules, dataset) if not finding.is_kept]
    refuse(failed, dataset, ", so nothing was published")
    return [f"check {finding}" for finding in failed if finding.level == "warn"]


def refuse(findings: Sequence[Finding], dataset: Dataset, consequence: str = "") -> None:
    """Raise where one of the findings fails at `error`.

    Raises:
        DataError: with every rule that fails, its figure, its bound and what helps.
    """
    failed = [finding for finding in findings if finding.level == "error" and not finding.is_kept]
    if failed:
        number = f"{len(failed)} checks fail" if len(failed) > 1 else "1 check fails"
        raise DataError(
            f"{number}{consequence}:" + "".join(f"\n    {finding}" for finding in failed),
            where=dataset.uri,
            mend="mend what they name, or set their level to warn; what is done stays, and is not done again",
        )


class _Measures:
    """The figures of a dataset, each computed when the first rule asks for it."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def find(self, rule: CheckConfig) -> Iterator[Finding]:
        """Yield what a rule comes to: one finding, or one per property."""
        if rule.rule == "max_predictive_property":
            yield from self._predictive(rule)
            return
        measures: dict[str, Callable[[], tuple[float, str, str]]] = {
            "min_images_per_class": self._smallest_class,
            "min_images_per_split": self._smallest_split,
            "max_class_imbalance": self._imbalance,
            "max_exact_leak_fraction": lambda: self._leaks("exact"),
            "max_near_leak_fraction": lambda: self._leaks("near"),
            "max_unlabelled_fraction": self._unlabelled,
            "max_quarantined_fraction": self._quarantined,
        }
        figure, words, mend = measures[rule.rule]()
        is_kept = figure >= rule.bound if rule.rule.startswith("min_") else figure <= rule.bound
        yield Finding(rule.rule, rule.level, figure, rule.bound, is_kept, words, mend)

    @cached_property
    def _classes(self) -> list[tuple[int, str]]:
        """Images of each class, the smallest class first."""
        counts = dict.fromkeys(self._dataset.classes, 0)
        for part in self._dataset.catalog["splits"].values():
            for label, number in part["labels"].items():
                counts[label] = counts.get(label, 0) + number
        return sorted((number, label) for label, number in counts.items())

    @cached_property
    def _properties(self) -> Properties:
        return read_properties(self._dataset)

    @cached_property
    def _twins(self) -> dict[str, Leaks]:
        return {split: find_leaks(self._dataset, split) for split in ("val", "test") if split in self._dataset.splits}

    def _smallest_class(self) -> tuple[float, str, str]:
        mend = "add images, or leave the class out"
        if not self._classes:
            return 0, "there is no class", mend
        number, label = self._classes[0]
        few = [name for count, name in self._classes if count == number][1 : _SHOWN + 1]
        others = f" (as has {', '.join(repr(name) for name in few)})" if few else ""
        return number, f"class {label!r} has {number:,} images{others}", mend

    def _smallest_split(self) -> tuple[float, str, str]:
        shares = self._dataset.catalog["split"].get("shares", {})
        rows = {split: int(part["rows"]) for split, part in self._dataset.catalog["splits"].items()}
        rows = {**{split: 0 for split, share in shares.items() if share > 0}, **rows}
        number, split = min((number, split) for split, number in rows.items())
        return number, f"split {split} has {number:,} images", f"give it a larger share: split.{split}="

    def _imbalance(self) -> tuple[float, str, str]:
        if not self._classes:
            return 0, "there is no class", ""
        (least, smallest), (most, largest) = self._classes[0], self._classes[-1]
        figure = most / max(1, least)
        words = f"class {largest!r} has {most:,} images and {smallest!r} {least:,}, {figure:.3g} times as many"
        return figure, words, f"add images of {smallest!r}"

    def _leaks(self, kind: str) -> tuple[float, str, str]:
        found = {split: int(getattr(leaks, kind).sum()) for split, leaks in self._twins.items()}
        total = sum(self._dataset.num_rows(split) for split in self._twins)
        figure = sum(found.values()) / total if total else 0.0
        by_split = ", ".join(f"{number:,} of {split}" for split, number in found.items())
        how = "stand in train byte for byte" if kind == "exact" else "look like one in train"
        words = f"{figure:.2%} of held-out images {how} ({by_split or 'there are none'})"
        if kind == "near" and not all(leaks.is_sure for leaks in self._twins.values()):
            words += "; the perceptual hash takes many of these pictures for each other, so none is counted"
        return figure, words, f"duplicates.{kind}=one_side takes them out"

    def _unlabelled(self) -> tuple[float, str, str]:
        number = sum(int(part["unlabelled"]) for part in self._dataset.catalog["splits"].values())
        figure = number / max(1, int(self._dataset.catalog["rows"]))
        return figure, f"{number:,} images ({figure:.2%}) have no label", "label them: resnet data relabel"

    def _quarantined(self) -> tuple[float, str, str]:
        counts = self._dataset.catalog["counts"]
        number = int(counts["quarantined"]) - int(counts.get("accepted", 0))
        figure = number / max(1, int(counts["members"]))
        return (
            figure,
            f"{number:,} of {counts['members']:,} members were refused ({figure:.2%})",
            ("mend the source, or accept the loss: resnet data quarantine accept"),
        )

    def _predictive(self, rule: CheckConfig) -> Iterator[Finding]:
        known = self._properties.names
        if rule.property and rule.property not in known:
            raise ConfigError(
                f"a check names the property {rule.property!r}, and the dataset has {', '.join(known)}",
                mend="name one of them, or none to check each",
            )
        names = [rule.property] if rule.property else known
        for name, found in self._properties.predictive(names).items():
            yield Finding(
                rule=f"{rule.rule} {name}",
                level=rule.level,
                figure=found.excess,
                bound=rule.bound,
                is_kept=found.excess <= rule.bound,
                words=f"{name} tells class {found.label!r} from all others by {found.share:.2f} of 1"
                f" (chance {found.chance:.2f})",
                mend="balance it over classes, or know that a network may learn it instead of the pictures",
            )
