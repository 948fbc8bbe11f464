"""Which of several trained networks is registered: the best on `val`, never on `test`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import InputError
from pipelines.metrics.deciding import find_deciding


def best_on_val(catalogs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the train or tune catalog with the highest figure on `val`; a tie goes to the first named.

    Raises:
        InputError: there is none, or one of them says nothing of `val`.
    """
    if not catalogs:
        raise InputError("there is no finished training to choose from", mend="run train or tune first")
    figures = {}
    for name, catalog in catalogs.items():
        try:
            figures[name] = float(catalog["best"][find_deciding(catalog["best"], "val_")])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"the catalog of {name} has neither best.val_top1 nor best.val_map: nothing to choose by",
                mend="train on a dataset with a val split",
            ) from None
    return max(figures, key=lambda name: figures[name])
