"""What a whole pipeline may be told: one section a stage; the runner connects them."""

from __future__ import annotations

import json
import warnings
from typing import Any, Self

from pydantic import Field, model_validator
from typing_extensions import override

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.evaluate.config import EvaluateConfig
from pipelines.ingest.config import IngestConfig
from pipelines.ray_runtime import RayConfig
from pipelines.registry.config import CHOSEN_BY, RegisterConfig
from pipelines.score.config import ScoreConfig
from pipelines.tracking import TrackingConfig
from pipelines.train.config import TrainConfig
from pipelines.tune.config import TuneConfig

DEMO_DIGITS = "demo:digits"
"""The source that the runner makes itself: scikit-learn's handwritten digits, with three planted faults."""

SOURCE = "@source"
DATASET = "@ingest"
BEST = "@best"
EVALUATION = "@evaluate"
REGISTERED = "@register"

# What the runner fills in: section, dotted key, and the reference that stands there until the stage is reached.
CONNECTIONS: tuple[tuple[str, str, str], ...] = (
    ("ingest", "source", SOURCE),
    ("train", "dataset", DATASET),
    ("tune", "train.dataset", DATASET),
    ("evaluate", "model", BEST),
    ("evaluate", "dataset", DATASET),
    ("register", "model", BEST),
    ("register", "evaluation", EVALUATION),
    ("register", "dataset", DATASET),
    ("score", "model", REGISTERED),
)
# What the runner alone gives: section and dotted key; empty until the stage is reached.
OURS: tuple[tuple[str, str], ...] = (
    ("ingest", "out"),
    ("train", "out"),
    ("tune", "out"),
    ("tune", "train.out"),
    ("evaluate", "out"),
    ("register", "out"),
    ("score", "out"),
    ("score", "model_sha256"),
)
# What a training by itself can be told and a sweep cannot: left where they are said.
_NOT_OF_SWEEPS = ("dataset", "out", "find_batch_size", "local")
# Settings that are said once, at the top, and hold for every section that has them.
SHARED = ("tracking", "ray")

with warnings.catch_warnings():
    # The section is named like its stage; that the metaclass has a method `register` too (ABCMeta) does no harm.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class RunConfig(StrictModel):
        """A pipeline: where images come from, and a section for each stage that is to run."""

        name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
        """Name of the pipeline: its folder below `out`, and the registered model's name unless `register` gives one."""

        out: str = runtime_field("runs", min_length=1)
        """Folder or object-store prefix that holds NAME/STAGE/KEY and NAME/report.html."""

        source: str = DEMO_DIGITS
        """The images: a folder, .zip or .tar, or `demo:digits`, which makes a zip of handwritten digits."""

        ingest: IngestConfig
        """How images become a dataset; `source` is filled in."""

        train: TrainConfig
        """The network that is trained; `dataset` is filled in."""

        tune: TuneConfig | None = None
        """The sweep, left out when absent; its `train` starts from the section above, `find_batch_size` and
        `local` left out."""

        evaluate: EvaluateConfig
        """The measurement; `model` (best on val of train and tune) and `dataset` are filled in."""

        register: RegisterConfig
        """The registration; `model`, `evaluation`, `dataset` are filled in."""

        score: ScoreConfig | None = None
        """The scoring, left out when absent; `archive` is the source unless given, `model` is filled in."""

        tracking: TrackingConfig = runtime_field(default_factory=TrackingConfig)
        """The MLflow store of all stages."""

        ray: RayConfig = runtime_field(default_factory=RayConfig)
        """The Ray cluster of all stages; one embedded session is shared."""

        @classmethod
        @override
        def model_validate_json(cls, json_data: str | bytes | bytearray, **settings: Any) -> Self:
            """Validate after connecting the sections; a `before` validator would leave pydantic's JSON mode."""
            values = json.loads(json_data)
            if isinstance(values, dict):
                values = connect(values)
            return super().model_validate_json(json.dumps(values), **settings)

        @model_validator(mode="after")
        def _inputs_are_ours(self) -> Self:
            for section, key, reference in (*CONNECTIONS, *((*ours, "") for ours in OURS)):
                part = getattr(self, section)
                if part is None:
                    continue
                value = _at(part.model_dump(mode="json"), key)
                if value != reference:
                    raise ValueError(
                        f"{section}.{key} is {value!r}, but a run connects its stages itself; mend: "
                        f"leave {section}.{key} out{_instead(key, reference)}"
                    )
            return self

        @model_validator(mode="after")
        def _evaluation_is_ground_for_registering(self) -> Self:
            # Else it would show at the registration, after hours of training.
            if self.evaluate.views.is_on:
                given = "flip" if self.evaluate.views.flip else "shift_px"
                raise ValueError(
                    f"evaluate.views.{given} is {getattr(self.evaluate.views, given)!r}, and a run registers its model,"
                    " which answers from one view, by its evaluation; mend: leave evaluate.views out, and measure with"
                    " views afterwards: resnet evaluate MODEL DATASET views.flip=true"
                )
            if self.evaluate.split in CHOSEN_BY:
                raise ValueError(
                    f"evaluate.split is {self.evaluate.split!r}, by which networks are trained or chosen, and a run"
                    " registers its model by its evaluation; mend: leave evaluate.split out, it is test then"
                )
            return self


def connect(values: dict[str, Any]) -> dict[str, Any]:
    """Return the raw sections with inputs, shared settings and the sweep's base network filled in."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for required in ("ingest", "train", "evaluate", "register"):
        result.setdefault(required, {})
    tune, train = result.get("tune"), result["train"]
    if isinstance(tune, dict) and isinstance(train, dict):
        base = {key: value for key, value in train.items() if key not in _NOT_OF_SWEEPS}
        tune["train"] = _merged(base, tune.get("train", {}))
    for section, key, reference in CONNECTIONS:
        if isinstance(result.get(section), dict):
            _fill(result[section], key, reference)
    if isinstance(result["register"], dict):
        result["register"].setdefault("name", result.get("name", ""))
    if isinstance(result.get("score"), dict):
        result["score"].setdefault("archive", SOURCE)
    for section in ("ingest", "train", "tune", "evaluate", "register", "score"):
        if isinstance(result.get(section), dict):
            _share(result, section)
    return result


def _instead(key: str, reference: str) -> str:
    """Return what to set in place of a setting that the runner fills in."""
    if reference == SOURCE:
        return " and set source"
    return " and set out" if key.rpartition(".")[2] == "out" else ""


def _share(values: dict[str, Any], section: str) -> None:
    annotation = RunConfig.model_fields[section].annotation
    schema = annotation if isinstance(annotation, type) else annotation.__args__[0]  # type: ignore[union-attr]
    places: list[tuple[dict[str, Any], Any]] = [(values[section], schema)]
    if section == "tune":
        places.append((values[section]["train"], TrainConfig))
    for place, fields in places:
        for name in SHARED:
            if name in values and name in fields.model_fields and isinstance(place, dict):
                place.setdefault(name, values[name])


def _merged(base: dict[str, Any], changes: Any) -> Any:
    if not isinstance(changes, dict):
        return changes
    result = dict(base)
    for key, value in changes.items():
        standing = result.get(key)
        result[key] = _merged(standing, value) if isinstance(standing, dict) and isinstance(value, dict) else value
    return result


def _fill(section: dict[str, Any], key: str, reference: str) -> None:
    *parents, last = key.split(".")
    here: Any = section
    for part in parents:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            return
    here.setdefault(last, reference)


def _at(values: dict[str, Any], key: str) -> Any:
    here: Any = values
    for part in key.split("."):
        here = here[part]
    return here
