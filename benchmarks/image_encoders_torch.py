"""EfficientNet-Lite0 in torch, as a function of the package's state dict with its norms folded into convolutions."""

from typing import Any

import numpy as np

from jaxseq.encoders.image.efficientnet import blocks
from jaxseq.weights import frozen_batch_norm


def folded(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each convolution's weight times the scale of the norm after it, and the norm's bias with its statistics."""
    made = {name: array for name, array in tensors.items() if name.startswith("_fc.")}
    convolution = ""
    for name, array in tensors.items():
        if array.ndim == 4:
            convolution = name
        elif name.endswith("running_var"):
            norm = name.removesuffix(".running_var")
            statistics = (tensors[f"{norm}.{each}"] for each in ("weight", "bias", "running_mean", "running_var"))
            scale, made[f"{norm}.bias"] = frozen_batch_norm(1e-3)(*statistics)
            made[convolution] = tensors[convolution] * scale[:, None, None, None]
    return made


def lite0(torch: Any, tensors: dict[str, Any], x: Any) -> Any:
    """The logits of normalized images [B C Y X]."""
    relu6 = torch.nn.functional.relu6

    def layer(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
        weight = tensors[f"{conv}.weight"]
        sides: list[int] = []
        for n in reversed(x.shape[2:]):
            total = max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0)
            sides += [total // 2, total - total // 2]
        options: dict[str, Any] = {"stride": stride, "groups": x.shape[1] // weight.shape[1]}
        if len(set(sides)) == 1:
            options["padding"] = sides[0]
        else:
            x = torch.nn.functional.pad(x, sides)
        return torch.nn.functional.conv2d(x, weight, tensors[f"{norm}.bias"], **options)

    x = relu6(layer(x, "_conv_stem", "_bn0", 2))
    for i, block in enumerate(blocks()):
        place, y = f"_blocks.{i}.", x
        if block.expansion != 1:
            y = relu6(layer(y, f"{place}_expand_conv", f"{place}_bn0"))
        y = relu6(layer(y, f"{place}_depthwise_conv", f"{place}_bn1", block.stride))
        y = layer(y, f"{place}_project_conv", f"{place}_bn2")
        x = x + y if x.shape == y.shape else y
    return relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
