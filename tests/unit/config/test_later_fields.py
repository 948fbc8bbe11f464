from __future__ import annotations

import json

from pipelines.config.strict import output_values
from pipelines.train.config import TrainConfig
from resnet_models.spec import ModelSpec

# What a model's part of a stage key held before ModelSpec grew: outputs made then must still be found.
FIRST_FIELDS = [
    "block", "depth", "depths", "channels", "width", "strides", "stem", "stem_channels", "shortcut",
    "stride_placement", "cardinality", "base_width", "num_classes", "in_channels", "zero_init_last",
]  # fmt: skip


def test_later_fields_of_a_model_leave_old_keys_alone() -> None:
    assert list(output_values(TrainConfig())["model"]) == FIRST_FIELDS
    assert output_values(TrainConfig())["model"]["depths"] == []


def test_a_later_field_in_use_is_part_of_the_key() -> None:
    config = TrainConfig(model=ModelSpec(norm="group", norm_size=8, exits=(1,)))
    values = output_values(config)["model"]
    assert list(values) == [*FIRST_FIELDS, "norm", "norm_size", "exits"]
    assert (values["norm"], values["norm_size"], values["exits"]) == ("group", 8, [1])
    assert json.loads(json.dumps(values)) == values
