"""The network that a scoring process holds: loaded once from a package, hash checked, none of its code executed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.errors import InputError
from pipelines.image.preprocess import Preprocess, prepare_raw
from pipelines.package.describe import DESCRIPTION_FILE, WEIGHTS_FILE
from pipelines.package.resolve import REGISTRY_SCHEME, ResolvedPackage, read_artifact
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig


@dataclass(frozen=True)
class PackageRef:
    """Where a pinned package stands and how it is to be run; plain values, so that it travels to any node."""

    uri: str
    name: str
    version: str
    weights_sha256: str
    precision: str
    device: str


def stage_package(
    resolved: ResolvedPackage, tracking: TrackingConfig, store: Storage, run_id: str, *, precision: str, device: str
) -> PackageRef:
    """Copy the package beside the run and return the copy: nodes need no registry, and nobody can take it away.

    Raises:
        InputError: its bytes are not those of its hashes.
        RegistryError: it cannot be fetched.
    """
    folder = f"_work/{run_id}/package"
    if not store.exists(f"{folder}/{DESCRIPTION_FILE}"):  # written last
        source = None if resolved.uri.startswith(REGISTRY_SCHEME) else Storage.open(resolved.uri)
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            data = source.read(name) if source is not None else read_artifact(resolved.uri, name, tracking)
            expected = resolved.weights_sha256 if name == WEIGHTS_FILE else resolved.description_sha256
            found = hashlib.sha256(data).hexdigest()
            if expected not in ("", found):
                raise InputError(
                    f"{name} has the hash {found}; {resolved.ref} names {expected}",
                    where=resolved.uri,
                    mend="the package was damaged or altered: register the model again",
                )
            store.put(f"{folder}/{name}", data)
    uri = store.child(folder).uri
    return PackageRef(uri, resolved.name, resolved.version, resolved.weights_sha256, precision, device)


@dataclass(frozen=True)
class Model:
    """A network with what is needed to feed it and to name its answers."""

    forward: Callable[[np.ndarray], np.ndarray]
    """uint8 (N, H, W, 3) -> float32 probabilities (N, classes)."""

    preprocess: Preprocess
    classes: tuple[str, ...]
    threshold: float | None = None
    """Probability from which an image has a label; None where it has one class."""

    def prepare(self, data: bytes) -> np.ndarray:
        """Return the network's input (H, W, 3) for the bytes of an image file.

        Raises:
            RefusedImage: the bytes are no image that we accept.
        """
        return prepare_raw(data, self.preprocess)

    def predict_one(self, data: bytes) -> np.ndarray:
        """Return the probabilities (classes,) for the bytes of one image file."""
        answer: np.ndarray = self.forward(self.prepare(data)[None])[0]
        return answer


@functools.lru_cache(maxsize=1)
def load_model(ref: PackageRef) -> Model:
    """Load a package, once per process.

    Raises:
        InputError: the weights are not those that were planned with.
    """
    from pipelines.package.load import load_package
    from pipelines.package.predictor import Predictor

    loaded = load_package(ref.uri)
    if loaded.weights_sha256 != ref.weights_sha256:
        raise InputError(
            f"the weights in {ref.uri} have the hash {loaded.weights_sha256}, not {ref.weights_sha256} as planned",
            mend="register the model again, or name the version that you mean",
        )
    return Model(
        forward=Predictor(loaded, ref.precision, ref.device).predict,
        preprocess=Preprocess.from_json(loaded.description["preprocess"]),
        classes=tuple(loaded.description["classes"]),
        threshold=loaded.description.get("threshold"),
    )
