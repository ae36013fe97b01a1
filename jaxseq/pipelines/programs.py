"""Programs of trained models for ``jax.export``: functions of named arrays, with free batch and time axes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from jaxseq.pipelines.captioner import Captioner
from jaxseq.pipelines.detector import Detector
from jaxseq.pipelines.saved import Pipeline
from jaxseq.pipelines.text_generator import TextGenerator
from jaxseq.pipelines.translator import Translator
from jaxseq.typing import Array, PyTree

Names = dict[str, Any]
"""The leaves of a tree by name."""


class Sizes(NamedTuple):
    """The sizes of the axes of the programs' arguments: numbers, or free."""

    batch: Any
    time: Any
    source: Any


class Program(NamedTuple):
    """A function of trees of arrays, the shapes and dtypes of its arguments, and the names of arguments and results."""

    function: Callable[..., tuple[Any, ...]]
    shapes: tuple[PyTree, ...]
    arguments: tuple[str, ...]
    results: tuple[str, ...]


def free_sizes(time: int | None = None) -> Sizes:
    """Free sizes ``b``, ``t`` and ``s``; with ``time`` only the batch is free."""
    b, t, s = export.symbolic_shape("b, t, s")
    return Sizes(b, t, s) if time is None else Sizes(b, time, time)


def programs(pipeline: Pipeline, params: PyTree, sizes: Sizes) -> dict[str, Program]:
    """The programs of a pipeline by name; ``params`` are arrays, or their shapes.

    - ``start``: the carry before the first token, for a translator or captioner also the encoded source.
    - ``step``: the carry and the logits after one more token.
    - ``forward``: whole sequences, from a carry or a source.
    - ``detect`` of a detector: its detections, given proposed boxes.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return dict(MAKERS[type(pipeline)](pipeline, shapes, sizes))


def flatten(tree: PyTree) -> Names:
    """The leaves of a tree by their dotted paths: ``core.cores_0.kernel``; of an array alone, the array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def flat(program: Program) -> tuple[Callable[..., tuple[Any, ...]], tuple[Any, ...]]:
    """The program as a function of arrays and of dicts of named arrays, which need no class of jaxseq; its shapes."""
    trees = [jax.tree.structure(shape) for shape in program.shapes]

    def function(*arguments: Any) -> tuple[Any, ...]:
        given = []
        for tree, shape, argument in zip(trees, program.shapes, arguments, strict=True):
            leaves = [argument[name] for name in flatten(shape)] if isinstance(argument, dict) else [argument]
            given.append(jax.tree.unflatten(tree, leaves))
        return tuple(named(result) for result in program.function(*given))

    return function, tuple(named(shape) for shape in program.shapes)


def named(tree: PyTree) -> Any:
    """An array as it is, any other tree as a dict of its leaves by name."""
    return tree if isinstance(tree, jax.Array | jax.ShapeDtypeStruct) or hasattr(tree, "ndim") else flatten(tree)


def _ints(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _language_model(generator: TextGenerator, params: PyTree, sizes: Sizes) -> Iterator[tuple[str, Program]]:
    model, (b, t, _) = generator.model, sizes

    def start(tokens: Array) -> tuple[Any, ...]:
        return (generator.initial_carry(tokens.shape),)

    def step(params: PyTree, carry: Any, tokens: Array) -> tuple[Any, ...]:
        after: Any = model.apply({"params": params}, carry, tokens[..., None])
        return after[0], after[1][..., 0, :]

    def forward(params: PyTree, carry: Any, tokens: Array, segment_ids: Array) -> tuple[Any, ...]:
        after: Any = model.apply({"params": params}, carry, tokens, segment_ids)
        return after[0], after[1]

    (carry,) = jax.eval_shape(start, _ints(b))
    yield "start", Program(start, (_ints(b),), ("tokens",), ("carry",))
    yield "step", Program(step, (params, carry, _ints(b)), ("params", "carry", "tokens"), ("carry", "logits"))
    arguments = "params", "carry", "tokens", "segment_ids"
    yield "forward", Program(forward, (params, carry, _ints(b, t), _ints(b, t)), arguments, ("carry", "logits"))


def _translator(translator: Translator, params: PyTree, sizes: Sizes) -> Iterator[tuple[str, Program]]:
    source = _ints(sizes.batch, sizes.source), _ints(sizes.batch, sizes.source)
    return _encoder_decoder(translator, params, sizes, source, ("source", "source_segment_ids"))


def _captioner(captioner: Captioner, params: PyTree, sizes: Sizes) -> Iterator[tuple[str, Program]]:
    image = captioner.blank()
    images = jax.ShapeDtypeStruct((sizes.batch, *image.shape[1:]), image.dtype)
    return _encoder_decoder(captioner, params, sizes, (images,), ("images",))


def _encoder_decoder(
    pipeline: Translator | Captioner, params: PyTree, sizes: Sizes, source: tuple[Any, ...], names: tuple[str, ...]
) -> Iterator[tuple[str, Program]]:
    model, (b, t, _), context = pipeline.model, sizes, pipeline.max_length

    def start(params: PyTree, *source: Any) -> tuple[Any, ...]:
        variables, rows = {"params": params}, source[0].shape[:1]
        encoded = model.apply(variables, *source, method="encode")
        return model.apply(variables, encoded, rows, context, method="initial_carry"), encoded

    def step(params: PyTree, carry: Any, tokens: Array, encoded: Any) -> tuple[Any, ...]:
        after: Any = model.apply({"params": params}, carry, tokens[..., None], None, encoded, method="decode")
        return after[0], after[1][..., 0, :]

    def forward(params: PyTree, *inputs: Any) -> tuple[Any, ...]:
        *source, tokens, segment_ids = inputs
        ids = [*source[1:], None][0]
        return (model.apply({"params": params}, source[0], tokens, ids, segment_ids),)

    carry, encoded = jax.eval_shape(start, params, *source)
    yield "start", Program(start, (params, *source), ("params", *names), ("carry", "encoded"))
    arguments = "params", "carry", "tokens", "encoded"
    yield "step", Program(step, (params, carry, _ints(b), encoded), arguments, ("carry", "logits"))
    shapes, inputs = (params, *source, _ints(b, t), _ints(b, t)), ("params", *names, "tokens", "segment_ids")
    yield "forward", Program(forward, shapes, inputs, ("logits",))


def _detector(detector: Detector, params: PyTree, sizes: Sizes) -> Iterator[tuple[str, Program]]:
    height, width = detector.image_size
    images = jax.ShapeDtypeStruct((sizes.batch, height, width, 3), jnp.uint8)
    boxes = jax.ShapeDtypeStruct((sizes.batch, detector.num_proposals, 4), jnp.float32)

    def detect(params: PyTree, images: Array, boxes: Array) -> tuple[Any, ...]:
        return (detector.detect(params, images, boxes),)

    yield "detect", Program(detect, (params, images, boxes), ("params", "images", "boxes"), ("detections",))


MAKERS: dict[type[Pipeline], Callable[..., Iterator[tuple[str, Program]]]] = {
    TextGenerator: _language_model,
    Translator: _translator,
    Captioner: _captioner,
    Detector: _detector,
}
"""The programs of each kind of pipeline."""
