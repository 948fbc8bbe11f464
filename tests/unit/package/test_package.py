from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import InputError
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.package.describe import PackageDescription, parse_description, write_package
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor, normalisation_of, top_classes
from pipelines.package.resolve import resolve_ref
from pipelines.package.served_model import ServedModel
from pipelines.storage import Storage
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.state_dict import pack_weights, unpack_weights
from tests.factories import make_pixels, make_png

SPEC = ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 16), num_classes=3)
DESCRIPTION = PackageDescription(
    SPEC,
    ("cat", "dog", "owl"),
    Preprocess(evaluation=Geometry(24, "crop")).to_json(),
    (0.4, 0.5, 0.6),
    (0.2, 0.25, 0.3),
    dataset={"uri": "data", "version": 1, "fingerprint": "f" * 64},
    metrics={"val_top1": 0.5, "val_loss": float("nan")},
    train_key="k" * 32,
)
GOLDEN = Path(__file__).parents[2] / "golden" / "package"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_package(Storage.open(tmp_path), "model", build(SPEC, seed=3).state_dict(), DESCRIPTION)
    return tmp_path / "model"


def rewrite(package: Path, **changes: Any) -> None:
    values = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps(values | changes))


def test_write_then_load(package: Path) -> None:
    loaded = load_package(str(package))
    assert (loaded.classes, loaded.spec, loaded.name, loaded.version) == (("cat", "dog", "owl"), SPEC, "model", "")
    assert loaded.weights_sha256 == hashlib.sha256((package / "weights.safetensors").read_bytes()).hexdigest()
    assert loaded.description["metrics"] == {"val_top1": 0.5, "val_loss": None}
    assert not loaded.network.training
    assert pack_weights(loaded.network.state_dict()) == pack_weights(build(SPEC, seed=3).state_dict())


def golden_weights() -> bytes:
    """Return a safetensors file, laid out by hand: header length, header, values in the order of names."""
    header: dict[str, Any] = {}
    body = b""
    for number, (name, (kind, shape)) in enumerate(json.loads((GOLDEN / "tensors.json").read_text()).items()):
        steps = np.arange(int(np.prod(shape)), dtype=np.int64)
        values = (steps * 37 + number * 11) % 41  # divided by powers of two: exact on every machine
        is_positive = name.endswith(("running_var", "norm.weight"))
        shifted = values + 1 if is_positive else values - 20
        data = (
            values.tobytes()
            if kind == "I64"
            else (shifted / (4096 if name.startswith("head") else 8)).astype("<f4").tobytes()
        )
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_golden_package_still_loads(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "model.json", tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(golden_weights())
    loaded = load_package(str(tmp_path))
    answer = Predictor(loaded, device="cpu").predict(make_pixels(1, 24, 24)[None])
    expected = json.loads((GOLDEN / "answer.json").read_text())
    np.testing.assert_allclose(answer[0], expected, atol=1e-5)


def test_resolving_reads_no_torch_and_no_mlflow(package: Path) -> None:
    code = (
        "import sys\nfrom pipelines.package.resolve import resolve_ref, read_description\n"
        f"resolved = resolve_ref({str(package)!r})\n"
        "print(resolved.weights_sha256, read_description(resolved)['classes'])\n"
        "heavy = {'torch', 'mlflow', 'ray', 'pandas', 'cv2', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(hashlib.sha256((package / "weights.safetensors").read_bytes()).hexdigest())


def test_folders_that_hold_a_package(package: Path, tmp_path: Path) -> None:
    sha256 = resolve_ref(str(package)).weights_sha256
    catalog = tmp_path / "_catalog.json"
    catalog.write_text(json.dumps({"stage": "train", "model": {"path": "model", "weights_sha256": sha256}}))
    assert resolve_ref(str(tmp_path)).uri == str(package)
    shutil.copytree(package, tmp_path / "downloaded" / "artifacts")
    assert load_package(str(tmp_path / "downloaded")).weights_sha256 == sha256

    catalog.write_text(json.dumps({"stage": "train", "model": {"path": "model", "weights_sha256": "0" * 64}}))
    with pytest.raises(InputError, match=f"names weights {sha256}; the catalog beside it says 0000"):
        resolve_ref(str(tmp_path))
    catalog.write_text(json.dumps({"stage": "ingest"}))
    with pytest.raises(InputError, match=r"_catalog\.json names no model"):
        resolve_ref(str(tmp_path))
    with pytest.raises(InputError, match=r"empty is no package: it holds no model\.json"):
        resolve_ref(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="model address 'models:/net@' is malformed"):
        resolve_ref("models:/net@")


def test_altered_weights_are_refused(package: Path) -> None:
    data = bytearray((package / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (package / "weights.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"weights\.safetensors has the hash [0-9a-f]{64}; model\.json names"):
        load_package(str(package))


def test_weights_of_another_network_are_refused(package: Path) -> None:
    other = pack_weights(build(ModelSpec(stem="cifar", depths=(1, 1), channels=(8, 24), num_classes=3)).state_dict())
    (package / "weights.safetensors").write_bytes(other)
    rewrite(package, weights_sha256=hashlib.sha256(other).hexdigest())
    with pytest.raises(InputError, match=r"stages\.1\.0\.conv1\.weight has shape \[24, 8, 3, 3\]"):
        load_package(str(package))


def test_a_network_of_terabytes_is_refused_before_it_is_made(package: Path) -> None:
    spec = json.loads((package / "model.json").read_text())["spec"]
    rewrite(package, spec={**spec, "channels": [16384, 16384], "width": 64.0})
    with pytest.raises(
        InputError, match=r"stem\.conv\.weight has shape \[8, 3, 3, 3\]; the network's has \[1048576, 3"
    ):
        load_package(str(package))


def test_diverged_weights_are_refused(package: Path) -> None:
    state = unpack_weights((package / "weights.safetensors").read_bytes())
    state["head.bias"][1] = float("nan")
    (package / "weights.safetensors").write_bytes(pack_weights(state))
    rewrite(package, weights_sha256=hashlib.sha256(pack_weights(state)).hexdigest())
    with pytest.raises(InputError, match=r"head\.bias holds 1 values that are infinite or not a number, of 3"):
        load_package(str(package))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "the description is not of the format resnet-pipelines/package"),
        ({"format_version": 3}, "the package has format version 3; this release reads up to 2"),
        ({"format_version": "1"}, "format_version is '1'; it must be a whole number"),
        ({"classes": ["a", "b"]}, "spec has stem cifar and 3 outputs; there are 2 classes"),
        ({"classes": ["a", "b", "b"]}, "classes must be texts, each once"),
        ({"std": [0.1, 0.2]}, r"std is \[0.1, 0.2\]; it must be three numbers of 0 to 1"),
        ({"spec": {"depht": 3}}, "spec.depht is 3: ModelSpec has no such field; did you mean depth"),
        ({"spec": SPEC.to_json() | {"in_channels": 1}}, "spec.in_channels is 1; the image path gives 3"),
        ({"metrics": None}, "metrics is None; it must be a dict"),
    ],
)
def test_descriptions_that_are_refused(package: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(package, **changes)
    with pytest.raises(InputError, match=message):
        load_package(str(package))


def test_a_cut_description_is_refused(package: Path) -> None:
    data = (package / "model.json").read_bytes()
    for cut in (b"", data[:100], b"[]"):
        with pytest.raises(InputError, match="the description is no"):
            parse_description(cut, "here")


def test_a_description_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    unsettled = PackageDescription(ModelSpec(num_classes=3), ("a", "b", "c"), {}, (0, 0, 0), (1, 1, 1))
    with pytest.raises(InputError, match="spec has stem auto"):
        write_package(Storage.open(tmp_path), "model", build(SPEC).state_dict(), unsettled)
    assert not (tmp_path / "model").exists()


def test_predictor_is_normalisation_forward_softmax(package: Path) -> None:
    loaded = load_package(str(package))
    pixels = np.stack([make_pixels(seed, 24, 24) for seed in range(3)])
    answer = Predictor(loaded, device="cpu").predict(pixels)
    images = (torch.from_numpy(pixels).double() / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.25, 0.3])
    with torch.inference_mode():
        expected = torch.softmax(loaded.network.double()(images.permute(0, 3, 1, 2)), 1)
    np.testing.assert_allclose(answer, expected.numpy(), atol=1e-5)
    assert answer.dtype == np.float32
    assert Predictor(load_package(str(package)), device="cpu").predict(pixels[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="precision is 'int8'; it must be one of float32, bf16, fp16"):
        Predictor(loaded, "int8")


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    scale, offset = normalisation_of([0.5, 0.0, 1.0], [0.25, 0.0, 0.5])
    assert torch.isfinite(scale).all()
    assert offset.tolist() == [2.0, 0.0, 2.0]


def test_top_classes_break_ties_by_index() -> None:
    probabilities = np.array([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4]], dtype=np.float32)
    assert top_classes(probabilities, 2).tolist() == [[1, 0], [0, 2]]
    assert top_classes(probabilities, 9).shape == (2, 3)


def test_served_model_answers_bytes_pixels_and_junk(package: Path) -> None:
    model = ServedModel()
    context = type("Context", (), {"artifacts": {"w": package / "weights.safetensors", "d": package / "model.json"}})()
    model.load_context(context)
    pixels = make_pixels(5, 60, 40)
    frame = model.predict(context, [{"image": cell} for cell in (make_png(5, 60, 40), b"junk", pixels)], {"top_k": 2})
    assert frame["names"][0] == frame["names"][2]
    assert frame["probabilities"][0] == pytest.approx(frame["probabilities"][2])
    assert (len(frame["names"][0]), frame["names"][1], frame["probabilities"][1]) == (2, [], [])
    assert frame["reason"][1].startswith("NOT_IMAGE: ")
    assert list(model.predict(context, {"image": []}).columns) == ["names", "probabilities", "reason"]
    with pytest.raises(ValueError, match="top_k is 0; it must be 1 or more"):
        model.predict(context, [{"image": pixels}], {"top_k": 0})
    with pytest.raises(
        ValueError, match=r"a cell of `image` holds a float32 array of shape \(40, 60, 3\); give the bytes"
    ):
        model.predict(context, [{"image": pixels.astype(np.float32)}])
    rewrite(package, weights_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"the weights have the hash [0-9a-f]{64}; model\.json names 000"):
        ServedModel().load_context(context)
