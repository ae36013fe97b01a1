"""ResNet and EfficientNet-Lite0 as plain torch functions of a state dict, for comparison."""

from typing import Any

import numpy as np

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
LITE0 = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]
LITE0 += [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]


def resnet_tensors(depth: int, width: int) -> dict[str, np.ndarray]:
    """A random state dict with torchvision's names; running statistics as after training."""
    rng = np.random.default_rng(depth)
    made: dict[str, np.ndarray] = {}

    def layer(conv: str, norm: str, features: int, channels: int, size: int) -> None:
        scale = (2 / (channels * size * size)) ** 0.5
        made[f"{conv}.weight"] = rng.normal(size=(features, channels, size, size), scale=scale)
        made[f"{norm}.weight"] = rng.uniform(0.3, 0.8, features)
        made[f"{norm}.bias"] = rng.normal(size=features, scale=0.2)
        made[f"{norm}.running_mean"] = rng.normal(size=features, scale=0.2)
        made[f"{norm}.running_var"] = rng.uniform(0.5, 2, features)
        made[f"{norm}.num_batches_tracked"] = np.array(100)

    expansion = 4 if depth >= 50 else 1
    layer("conv1", "bn1", width, 3, 7)
    channels = width
    for stage, count in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        wide = inner * expansion
        for i in range(count):
            place = f"layer{stage + 1}.{i}."
            sizes = [(inner, 3), (wide, 3)] if expansion == 1 else [(inner, 1), (inner, 3), (wide, 1)]
            before = channels
            for n, (features, size) in enumerate(sizes, 1):
                layer(f"{place}conv{n}", f"{place}bn{n}", features, before, size)
                before = features
            if i == 0 and (stage > 0 or channels != wide):
                layer(f"{place}downsample.0", f"{place}downsample.1", wide, channels, 1)
            channels = wide
    made["fc.weight"] = rng.normal(size=(10, channels), scale=0.1)
    made["fc.bias"] = rng.normal(size=10)
    return {name: array.astype(np.int64 if array.ndim == 0 else np.float32) for name, array in made.items()}


def torch_resnet(torch: Any, tensors: dict[str, Any], depth: int, x: Any) -> Any:
    """The last map [B C Y X] of normalized images, in evaluation mode."""
    functional = torch.nn.functional

    def layer(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
        weight = tensors[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names), eps=1e-5)

    x = functional.max_pool2d(torch.relu(layer(x, "conv1", "bn1", 2)), 3, 2, 1)
    for stage, count in enumerate(BLOCKS[depth]):
        for i in range(count):
            place, stride = f"layer{stage + 1}.{i}.", 2 if stage and not i else 1
            y = x
            if depth < 50:
                y = torch.relu(layer(y, f"{place}conv1", f"{place}bn1", stride))
                y = layer(y, f"{place}conv2", f"{place}bn2")
            else:
                y = torch.relu(layer(y, f"{place}conv1", f"{place}bn1"))
                y = torch.relu(layer(y, f"{place}conv2", f"{place}bn2", stride))
                y = layer(y, f"{place}conv3", f"{place}bn3")
            if f"{place}downsample.0.weight" in tensors:
                x = layer(x, f"{place}downsample.0", f"{place}downsample.1", stride)
            x = torch.relu(x + y)
    return x


def torch_lite0(torch: Any, tensors: dict[str, Any], x: Any) -> Any:
    """The logits of normalized images [B C Y X]."""
    functional = torch.nn.functional

    def layer(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
        weight = tensors[f"{conv}.weight"]
        sides: list[int] = []
        for n in reversed(x.shape[2:]):
            total = max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0)
            sides += [total // 2, total - total // 2]
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(functional.pad(x, sides), weight, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names), eps=1e-3)

    x = functional.relu6(layer(x, "_conv_stem", "_bn0", 2))
    number = 0
    for repeats, _, stride, expansion, _ in LITE0:
        for i in range(repeats):
            place, y = f"_blocks.{number}.", x
            if expansion != 1:
                y = functional.relu6(layer(y, f"{place}_expand_conv", f"{place}_bn0"))
            y = functional.relu6(layer(y, f"{place}_depthwise_conv", f"{place}_bn1", stride if i == 0 else 1))
            y = layer(y, f"{place}_project_conv", f"{place}_bn2")
            x = x + y if i else y
            number += 1
    x = functional.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    return x @ tensors["_fc.weight"].T + tensors["_fc.bias"]
