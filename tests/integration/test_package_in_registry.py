"""A package through a real MLflow store: registered, pinned, loaded by us, and served without us."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import InputError, RegistryError
from pipelines.image.preprocess import Preprocess, prepare_raw
from pipelines.image.resize import Geometry
from pipelines.package import bundle
from pipelines.package.describe import DESCRIPTION_TAG, WEIGHTS_TAG, PackageDescription, write_package
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor
from pipelines.package.resolve import resolve_ref
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig, open_client, open_experiment
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.factories import make_jpeg, make_png

pytestmark = pytest.mark.integration

PREPROCESS = Preprocess(stored=Geometry(40, "fit"), evaluation=Geometry(32, "crop", 0.875))
SPEC = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=4)

ALONE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("pipelines") is None and importlib.util.find_spec("resnet_models") is None
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[2])
cells = [open(path, "rb").read() for path in sys.argv[3:]]
frame = model.predict({"image": cells}, params={"top_k": 4})
print(json.dumps([dict(zip(*row)) for row in zip(frame["names"], frame["probabilities"])]))
rows = model.predict([{"image": np.zeros((50, 40, 3), np.uint8)}])
assert len(rows["names"][0]) == 4, rows
"""


@pytest.fixture(scope="module")
def tracking(mlflow_uri: str) -> TrackingConfig:
    return TrackingConfig(uri=mlflow_uri, experiment="packages")


@pytest.fixture(scope="module")
def registered(tracking: TrackingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Register one package as `net` version 1 with tags and an alias; return its folder."""
    folder = tmp_path_factory.mktemp("package")
    description = PackageDescription(SPEC, ("a", "b", "c", "d"), PREPROCESS.to_json(), (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    written = write_package(Storage.open(folder), "model", build(SPEC, seed=3).state_dict(), description)
    client = open_client(tracking.uri)
    experiment = open_experiment(client, tracking.uri, tracking.experiment)
    import mlflow

    mlflow.set_tracking_uri(tracking.uri)
    with mlflow.start_run(experiment_id=experiment):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(bundle.write_bundle(folder)),
            artifacts=bundle.artifacts(folder / "model"),
            signature=bundle.signature(),
            pip_requirements=bundle.requirements(),
            registered_model_name="net",
        )
    client.set_model_version_tag("net", "1", WEIGHTS_TAG, written["weights_sha256"])
    sha256 = hashlib.sha256((folder / "model" / "model.json").read_bytes()).hexdigest()
    client.set_model_version_tag("net", "1", DESCRIPTION_TAG, sha256)
    client.set_registered_model_alias("net", "champion", "1")
    return folder / "model"


def test_alias_is_pinned_and_loads_the_same_network(registered: Path, tracking: TrackingConfig) -> None:
    resolved = resolve_ref("models:/net@champion", tracking)
    here = load_package(str(registered))
    assert (resolved.uri, resolved.name, resolved.version) == ("models:/net/1", "net", "1")
    assert resolved.weights_sha256 == here.weights_sha256
    loaded = load_package("models:/net@champion", tracking)
    assert (loaded.name, loaded.version, loaded.description) == ("net", "1", here.description)
    pixels = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    expected = Predictor(here, device="cpu").predict(pixels)
    assert np.array_equal(Predictor(loaded, device="cpu").predict(pixels), expected)


def test_what_the_registry_lacks(registered: Path, tracking: TrackingConfig) -> None:
    for ref, wanted, name in (
        ("models:/net@nobody", "alias nobody", "net"),
        ("models:/net/9", "version 9", "net"),
        ("models:/other/1", "version 1", "other"),
    ):
        with pytest.raises(RegistryError, match=f"the registry has no {wanted} of a model '{name}'"):
            resolve_ref(ref, tracking)


def test_mlflow_serves_it_without_us_and_without_pickle(
    registered: Path, tracking: TrackingConfig, tmp_path: Path
) -> None:
    import mlflow

    images = [tmp_path / "a.jpg", tmp_path / "b.png"]
    images[0].write_bytes(make_jpeg(1, 90, 61))
    images[1].write_bytes(make_png(2, 33, 57))
    folder = mlflow.artifacts.download_artifacts("models:/net/1", dst_path=str(tmp_path), tracking_uri=tracking.uri)
    assert not [path for path in Path(folder).rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, sysconfig.get_paths()["purelib"], folder, *map(str, images)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr
    pixels = np.stack([prepare_raw(path.read_bytes(), PREPROCESS) for path in images])
    loaded = load_package("models:/net/1", tracking)
    expected = Predictor(loaded, device="cpu").predict(pixels)
    for row, answer in zip(json.loads(done.stdout), expected, strict=True):
        assert row == {name: pytest.approx(value, abs=1e-6) for name, value in zip(loaded.classes, answer, strict=True)}


def test_artifacts_altered_after_registration_are_refused(registered: Path, tracking: TrackingConfig) -> None:
    artifacts = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    (weights,) = artifacts.rglob("weights.safetensors")
    (description,) = artifacts.rglob("model.json")
    whole, text = weights.read_bytes(), description.read_text()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=r"weights\.safetensors has the hash [0-9a-f]{64}; model\.json names"):
            load_package("models:/net/1", tracking)
        # both files replaced by a consistent pair: only the registry's own record tells
        changed = json.loads(text) | {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
        description.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"model\.json has the hash [0-9a-f]{64}; the registry names"):
            load_package("models:/net/1", tracking)
    finally:
        weights.write_bytes(whole)
        description.write_text(text)
    assert load_package("models:/net/1", tracking).version == "1"
