"""How many images may be unusable, of all and of each class, before an ingest stops instead of going on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.dataset.label_text import names_in
from pipelines.dataset.receipt import QuarantineFile
from pipelines.dataset.tables import open_parquet
from pipelines.errors import DataError
from pipelines.ingest.config import IngestConfig
from pipelines.sources.base import Entry
from pipelines.storage import Storage

_EXAMPLES = 5


class Budget:
    """Counts what is quarantined as units are done, and knows as soon as no later unit can mend it.

    Args:
        config: the limits.
        entries: the members that are read.
        store: the dataset, whose quarantine files say the classes of what was refused.
        appends: whether images stand already, so that a source of which nothing can be used is no reason to stop.
    """

    def __init__(
        self, config: IngestConfig, entries: Iterable[Entry], store: Storage, *, appends: bool = False
    ) -> None:
        self._config = config
        self._store = store
        self._appends = appends
        self._is_per_class = config.max_quarantined_fraction_per_class < 1
        self._task = "single"
        self.total = 0
        self._of_class: Counter[str] = Counter()
        for entry in entries:
            self.total += 1
            if not isinstance(entry.label, (str, type(None))):
                self._task = "multi"
            if self._is_per_class:
                self._of_class.update([entry.label] if isinstance(entry.label, str) else entry.label or ())
        self._bad = 0
        self._good = 0
        self._reasons: Counter[str] = Counter()
        self._bad_of_class: dict[str, Counter[str]] = {}
        self._keys: list[str] = []
        self._keys_of_class: dict[str, list[str]] = {}

    @property
    def refused(self) -> int:
        """Members that were quarantined so far."""
        return self._bad

    def add(self, report: Mapping[str, Any]) -> None:
        """Count a unit's receipt."""
        counts = report["counts"]
        self._good += int(counts["written"])
        self.refuse(int(counts["quarantined"]), counts, [QuarantineFile(**file) for file in report["quarantine"]])

    def refuse(self, number: int, reasons: Mapping[str, int], files: Iterable[QuarantineFile]) -> None:
        """Count refused members that stand in quarantine files; reasons are named as in the counts of a receipt."""
        self._bad += number
        for name, count in reasons.items():
            if name.startswith("quarantined."):
                self._reasons[name.removeprefix("quarantined.")] += count
        for file in files:
            if not self._is_per_class and len(self._keys) >= _EXAMPLES:
                continue
            table = open_parquet(self._store, file.path).read(columns=["key", "label", "reason"])
            self._keys += table.column("key").to_pylist()[: _EXAMPLES - len(self._keys)]
            for row in table.to_pylist() if self._is_per_class else ():
                for name in names_in(row["label"], self._task):
                    self._bad_of_class.setdefault(name, Counter())[row["reason"]] += 1
                    examples = self._keys_of_class.setdefault(name, [])
                    if len(examples) < _EXAMPLES:
                        examples.append(row["key"])

    @property
    def is_spent(self) -> bool:
        """Whether more was refused than the whole source may have, or than one class may."""
        return self._bad > self._config.max_quarantined_fraction * self.total or bool(self._spent_classes())

    def check(self) -> None:
        """Refuse to go on when more images are unusable than the budget allows, or all of a first ingest's.

        Raises:
            DataError: with the commonest reasons and some of the images.
        """
        is_nothing = bool(self._bad) and not self._good and not self._appends and self._bad >= self.total
        if self._bad > self._config.max_quarantined_fraction * self.total or is_nothing:
            limit = self._config.max_quarantined_fraction
            raise DataError(
                f"{self._bad:,} of {self.total:,} images cannot be used ({_words(self._reasons)});"
                f" {limit:.1%} are allowed",
                where=self._where(self._keys),
                mend="look at these images; max_quarantined_fraction=0.5 would allow half of them",
            )
        if spent := self._spent_classes():
            label, more = spent[0], len(spent) - 1
            reasons = self._bad_of_class[label]
            others = f" (and of {more} more {'classes' if more > 1 else 'class'} too many)" if more else ""
            raise DataError(
                f"{reasons.total():,} of {self._of_class[label]:,} images of class {label!r} cannot be used"
                f" ({_words(reasons)}){others}; {self._config.max_quarantined_fraction_per_class:.1%} of a class are"
                " allowed",
                where=self._where(self._keys_of_class[label]),
                mend="look at these images; max_quarantined_fraction_per_class=0.5 would allow half of each class",
            )

    def _where(self, keys: list[str]) -> str:
        """Name some of the images, unless a privacy rule applies: keys may name persons, and errors end up in logs."""
        source = self._config.source
        return source if self._config.privacy.applies else f"{source}: for example {', '.join(keys[:_EXAMPLES])}"

    def _spent_classes(self) -> list[str]:
        """Return the classes that lost too much, the worst first."""
        limit = self._config.max_quarantined_fraction_per_class
        shares = {
            label: bad.total() / max(1, self._of_class[label])
            for label, bad in self._bad_of_class.items()
            if bad.total() > limit * self._of_class[label]
        }
        return sorted(shares, key=lambda label: (-shares[label], label))


def _words(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common(_EXAMPLES))
