from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipelines.image.preprocess import Preprocess, prepare_raw
from pipelines.image.resize import Geometry
from pipelines.package import bundle
from pipelines.package.describe import PackageDescription, write_package
from pipelines.package.load import load_package
from pipelines.package.predictor import Predictor, top_classes
from pipelines.storage import Storage
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec, spec_names
from tests.factories import make_jpeg, make_png
from tests.random_specs import random_spec

CHILD = Path(__file__).with_name("bundle_child.py")
GEOMETRIES = [
    Preprocess(stored=Geometry(40, "fit"), evaluation=Geometry(32, "crop", 0.875)),
    Preprocess(evaluation=Geometry(24, "pad")),
    Preprocess(stored=Geometry(48, "squash"), evaluation=Geometry(32, "crop")),
]


def run_alone(
    folder: Path, specs: list[ModelSpec], packages: list[Path], images: list[Path], *, timeout_s: float = 280
) -> dict[str, npt.NDArray[np.float32]]:
    """Run the bundle where our packages cannot be imported; return its answers."""
    bundle.write_bundle(folder)
    job = {
        "specs": [spec.to_json() for spec in specs],
        "packages": [str(package) for package in packages],
        "images": [str(image) for image in images],
    }
    (folder / "job.json").write_text(json.dumps(job))
    site_packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-I", "-S", CHILD, site_packages, folder / bundle.BUNDLE_FILE, folder / "job.json"]
    done = subprocess.run(
        [*command, folder / "answers.npz"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here: sums in the same order
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as answers:
        return dict(answers)


def logits_here(spec: ModelSpec, index: int) -> npt.NDArray[np.float32]:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(index))
    with torch.inference_mode():
        network = build(spec, seed=index)  # in training mode, as there
        answer: npt.NDArray[np.float32] = network(images, sample_keys=torch.arange(2) + index).numpy()
    assert np.isfinite(answer).all()
    return answer


def test_bundle_equals_the_installed_code(tmp_path: Path, one_torch_thread: None) -> None:
    named = [named_spec(name) for name in spec_names()]
    small = [spec for spec in named if sum(spec.stage_depths) <= 8 and sum(spec.stage_channels) < 1000]
    specs = [*small, *(random_spec(random.Random(seed), noise=True) for seed in range(30))]
    images = [tmp_path / "a.jpg", tmp_path / "b.png"]
    images[0].write_bytes(make_jpeg(1, 90, 61, exif_orientation=6))
    images[1].write_bytes(make_png(2, 33, 57))
    packages = []
    for index, preprocess in enumerate(GEOMETRIES):
        spec = random_spec(random.Random(1000 + index))
        description = PackageDescription(
            spec,
            tuple(f"class {number}" for number in range(spec.num_classes)),
            preprocess.to_json(),
            (0.4, 0.5, 0.6),
            (0.2, 0.0, 0.3),
        )
        write_package(Storage.open(tmp_path), f"package{index}", build(spec, seed=index).state_dict(), description)
        packages.append(tmp_path / f"package{index}")

    answers = run_alone(tmp_path, specs, packages, images)
    assert len(small) >= 2
    for index, spec in enumerate(specs):
        assert np.array_equal(answers[f"logits{index}"], logits_here(spec, index)), spec
    for index, package in enumerate(packages):
        predictor = Predictor(load_package(str(package)), device="cpu")
        pixels = np.stack([prepare_raw(path.read_bytes(), GEOMETRIES[index]) for path in images])
        probabilities = predictor.predict(pixels)
        best = top_classes(probabilities, 3)
        assert np.array_equal(answers[f"probabilities{index}"], np.take_along_axis(probabilities, best, axis=1))
        assert answers[f"names{index}"].tolist() == [[predictor.classes[number] for number in row] for row in best]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bundle_equals_the_installed_code_for_every_name(tmp_path: Path, one_torch_thread: None) -> None:
    specs = [named_spec(name) for name in spec_names()]
    specs += [random_spec(random.Random(seed), noise=True) for seed in range(200)]
    answers = run_alone(tmp_path, specs, [], [], timeout_s=3600)
    for index, spec in enumerate(specs):
        assert np.array_equal(answers[f"logits{index}"], logits_here(spec, index)), spec


def test_bundle_is_the_sources_joined() -> None:
    text = bundle.make_bundle()
    assert text == bundle.make_bundle()
    assert "from resnet_models" not in text
    assert "from pipelines" not in text
    assert text.count("class BasicBlock(PostactivationBlock):") == 1
    assert text.count("from __future__ import annotations") == 1
    assert text.rstrip().endswith("mlflow.models.set_model(ServedModel())")
    compile(text, "network.py", "exec", dont_inherit=True)
    for forbidden in ("pickle", "ray", "torchvision"):
        assert f"import {forbidden}" not in text


def test_requirements_pin_what_the_file_imports() -> None:
    pins = dict(line.split("==") for line in bundle.requirements())
    assert sorted(pins) == [
        "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "safetensors", "simplejpeg", "torch",
    ]  # fmt: skip
    assert all("+" not in version for version in pins.values())
    assert torch.__version__.startswith(pins["torch"])


def test_signature_takes_images_and_gives_names() -> None:
    signature = bundle.signature()
    assert signature.inputs.to_dict() == [{"type": "binary", "name": "image", "required": True}]
    assert [column["name"] for column in signature.outputs.to_dict()] == ["names", "probabilities", "reason"]
    assert signature.params.to_dict()[0]["name"] == "top_k"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import resnet_models.spec\n", "line 1: imports of ours must be `from module import Name` at the top level"),
        ("from resnet_models.spec import ModelSpec as Spec\n", "line 1: imports of ours must be"),
        ("def f():\n    from resnet_models.spec import ModelSpec\n", "line 2: imports of ours must be"),
        ("from pipelines.storage import Storage\n", "pipelines.storage cannot be bundled: only resnet_models."),
        ("class BasicBlock:\n    pass\n", "BasicBlock is bound in .* and differently in "),
        ("from torch import nn as F\n", "F is bound in .* and differently in "),
        ("if True:\n    WEIGHT = 1\nfor HEAD_POOLS in ():\n    pass\n", "HEAD_POOLS is bound in .* and differently"),
    ],
)
def test_sources_that_break_the_rules_are_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "served.py"
    root.write_text(f"{source}\n")
    (tmp_path / "extra.py").write_text(
        "from resnet_models.resnet import build\nfrom pipelines.package.predictor import x\n"
    )
    find_spec = bundle.importlib.util.find_spec

    def find(name: str) -> object:
        if name == bundle.ROOT_MODULE:
            return type("Spec", (), {"origin": str(tmp_path / "extra.py")})()
        return type("Spec", (), {"origin": str(root)})() if name == "pipelines.package.predictor" else find_spec(name)

    monkeypatch.setattr(bundle.importlib.util, "find_spec", find)
    with pytest.raises(bundle.BundleError, match=message):
        bundle.make_bundle()
