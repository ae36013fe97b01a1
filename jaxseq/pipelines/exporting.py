"""Export a trained model: its weights as safetensors, its architecture as JSON, its functions by ``jax.export``."""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import jaxseq
from jaxseq import training, weights
from jaxseq.files import JSON, write_atomic, write_json
from jaxseq.pipelines.loading import Trained
from jaxseq.pipelines.programs import Program, Sizes, flat, flatten, free_sizes, named, programs
from jaxseq.typing import Array

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"
LENGTH = 128
"""The length of the time axes where they cannot be free."""

TOLERANCE = 1e-4
"""The largest difference, relative to the largest value, of an exported program from the model (float32 and wider)."""


def export_model(
    trained: Trained, folder: str | os.PathLike[str], *, length: int = LENGTH, platforms: Sequence[str] = ()
) -> dict[str, JSON]:
    """Write a trained model to a folder that needs no jaxseq to be used; returns the contents of its JSON file.

    - ``model.safetensors``: the parameters by their dotted paths (torch and NumPy read them).
    - ``architecture.json``: the model's config, the vocabulary, parameters, programs with their arguments and results.
    - ``start.jaxexport``, ``step.jaxexport``, ``forward.jaxexport`` (``detect.jaxexport`` of a detector): programs that
      ``jax.export.deserialize`` reads. Their arguments are arrays and dicts of named arrays (``params``: those of
      ``model.safetensors``). The batch axis ``b`` is free, and so are the axes of time, ``t`` and ``s``, where the
      model allows it: every core of ``jaxseq.cores.CORES`` does. With a free time axis the plain implementations run.

    Every program is read again and compared with the model.

    Args:
        trained: ``jaxseq.load(run)``.
        folder: is created; it must not exist, or be empty.
        length: of the time axes where they cannot be free.
        platforms: of the programs, such as ``("cpu", "cuda")``; by default that of this process.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: ``length`` is not positive, or a program cannot be exported or differs from the model.
        ImportError: a package of the extra ``export`` is not installed.
    """
    for name in ("flatbuffers", "safetensors"):  # before any work
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"an export needs {name}: pip install 'jaxseq[export]'")
    out = Path(folder)
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder")
    tensors = {name: np.asarray(leaf) for name, leaf in flatten(trained.params).items()}
    made, reason = _export_all(trained, length, platforms)
    _verify(trained, made, Sizes(2, length, length))
    if reason is None:
        _verify(trained, made, Sizes(3, 5, 4))
    out.mkdir(parents=True, exist_ok=True)
    weights.write_weights(out / WEIGHTS, tensors)
    for name, (_, serialized) in made.items():
        write_atomic(out / _file(name), serialized)
    described = _describe(trained, made, reason, out)
    write_json(out / ARCHITECTURE, described)
    return described


def _file(name: str) -> str:
    return f"{name}.jaxexport"


def _export_all(
    trained: Trained, length: int, platforms: Sequence[str]
) -> tuple[dict[str, tuple[Program, bytes]], str | None]:
    """The programs with free time axes, or else with axes of that length and the reason."""
    reason: str | None = None
    for sizes in (free_sizes(), free_sizes(length)):
        made = {}
        try:
            for name, program in programs(trained.pipeline, trained.params, sizes).items():
                function, shapes = flat(program)
                exported = export.export(jax.jit(function), platforms=platforms or None)(*shapes)
                made[name] = program, bytes(exported.serialize())
        except Exception as error:  # of any kind: a user's core may fail on symbolic sizes in its own way
            first = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            if reason is not None:
                raise ValueError(f"the model cannot be exported: {first}") from error
            reason = first
        else:
            return made, reason
    raise AssertionError(reason)


def _verify(trained: Trained, made: dict[str, tuple[Program, bytes]], sizes: Sizes) -> None:
    """Compare each program, as it is read again, with the model.

    Raises:
        ValueError: a result differs.
    """
    known: dict[str, Any] = {"params": trained.params}
    for name, program in programs(trained.pipeline, trained.params, sizes).items():
        pairs = zip(program.arguments, program.shapes, strict=True)
        arguments = [known[argument] if argument in known else _example(argument, shape) for argument, shape in pairs]
        expected = jax.jit(program.function)(*arguments)
        call = jax.jit(export.deserialize(bytearray(made[name][1])).call)
        found = call(*map(named, arguments))
        for result, want, got in zip(program.results, expected, found, strict=True):
            _check_equal(f"{name}: {result}", named(want), got)
            known.setdefault(result, want)


def _example(name: str, shape: Any) -> Array:
    """Values for an argument: ids of one document, other integers 0 and 1, boxes within an image."""
    if name.endswith("segment_ids"):
        return jnp.ones(shape.shape, shape.dtype)
    if name == "boxes":
        return jnp.broadcast_to(jnp.asarray([0, 0, 8, 8], shape.dtype), shape.shape)
    count = int(np.prod(shape.shape))
    return jnp.asarray(np.arange(count).reshape(shape.shape) % 2, shape.dtype)


def _check_equal(name: str, want: Any, got: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        other = got[path[0].key] if path else got
        a, b = (np.asarray(x, np.float64) for x in (leaf, other))  # ids and masks too
        scale = TOLERANCE if leaf.dtype.itemsize >= 4 else 2.0**-5
        if a.shape != b.shape or (a.size and not np.abs(a - b).max() <= scale * max(1.0, np.abs(a).max())):
            raise ValueError(f"the exported program differs from the model: {name} {jax.tree_util.keystr(path)}")


def _describe(
    trained: Trained, made: dict[str, tuple[Program, bytes]], reason: str | None, out: Path
) -> dict[str, JSON]:
    """The contents of ``architecture.json``."""
    pipeline, vocabulary = trained.pipeline, trained.vocabulary
    vocabularies = vocabulary._asdict() if hasattr(vocabulary, "_asdict") else {"outputs": vocabulary}
    described = {
        "format": "jaxseq export 1",
        "kind": type(pipeline).__name__,
        "model": pipeline.config,
        "vocabulary": {name: v.to_json() if hasattr(v, "to_json") else list(v) for name, v in vocabularies.items()},
        "step": trained.step,
        "free_axes": _free_axes(made),
        "time_is_fixed_because": reason,
        "versions": {"jaxseq": jaxseq.__version__, "jax": jax.__version__},
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()},
        "parameters": _signature(trained.params),
        "programs": {name: _program(name, *parts) for name, parts in made.items()},
    }
    found: dict[str, JSON] = training.to_json(described)
    return found


def _free_axes(made: dict[str, tuple[Program, bytes]]) -> list[str]:
    """The names of the axes that are free in some argument: b, t, s."""
    leaves = jax.tree.leaves([program.shapes for program, _ in made.values()])
    found = {str(size) for leaf in leaves for size in leaf.shape if not isinstance(size, int)}
    return [name for name in "bts" if name in found]


def _program(name: str, program: Program, serialized: bytes) -> dict[str, Any]:
    exported = export.deserialize(bytearray(serialized))
    shapes = dict(zip(program.arguments, program.shapes, strict=True))
    arguments = {a: "parameters" if a == "params" else _signature(shapes[a]) for a in program.arguments}
    return {
        "file": _file(name),
        "sha256": hashlib.sha256(serialized).hexdigest(),
        "arguments": arguments,
        "results": list(program.results),
        "platforms": list(exported.platforms),
    }


def _signature(tree: Any) -> Any:
    """Shape and dtype of an array, or of each named array; free axes are texts."""
    found = named(tree)
    if isinstance(found, dict):
        return {name: _signature(leaf) for name, leaf in found.items()}
    return {"shape": [d if isinstance(d, int) else str(d) for d in found.shape], "dtype": str(found.dtype)}
