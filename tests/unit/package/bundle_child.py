"""Runs a bundled file where our packages cannot be imported; started by test_bundle.py with `python -I -S`.

Arguments: folder of dependencies, bundle file, job JSON, output npz.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

site_packages, bundle_file, job_file, out_file = sys.argv[1:]
sys.path.append(site_packages)  # appended by hand: no .pth file runs, so nothing installed as editable is found
for name in ("pipelines", "resnet_models", "cluster"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported here"

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("network", bundle_file)
network = importlib.util.module_from_spec(spec)
sys.modules["network"] = network
spec.loader.exec_module(network)
job = json.loads(Path(job_file).read_text())
answers = {}
for index, case in enumerate(job["specs"]):
    # In training mode: with untrained running statistics a thousand layers overflow.
    built = network.build(network.ModelSpec.from_json(case), seed=index)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(index))
    with torch.inference_mode():
        # By keys of the samples, so that what is left out at random is the same there and here.
        answers[f"logits{index}"] = built(images, sample_keys=torch.arange(2) + index).numpy()
for index, folder in enumerate(job["packages"]):
    paths = {"weights": f"{folder}/weights.safetensors", "description": f"{folder}/model.json"}
    model = network.ServedModel()
    model.load_context(SimpleNamespace(artifacts=paths))
    cells = [Path(path).read_bytes() for path in job["images"]]
    frame = model.predict(None, [{"image": cell} for cell in cells], {"top_k": 3})
    answers[f"names{index}"] = np.array(frame["names"].tolist())
    answers[f"probabilities{index}"] = np.array(frame["probabilities"].tolist())
np.savez(out_file, **answers)
