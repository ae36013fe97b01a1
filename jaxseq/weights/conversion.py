"""Weights of other libraries as parameters: names are mapped, layouts converted, and everything is accounted for."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from jaxseq.typing import Shaped
from jaxseq.weights.errors import WeightsError, listed

Tensor: TypeAlias = Shaped[np.ndarray, "..."]


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor


class Entry(NamedTuple):
    """Parameters ``targets`` (``"stem/conv/kernel"``) made of tensors ``sources`` (``"conv1.weight"``).

    ``convert`` takes one array per source and returns one array, or, if there are several targets, one for each.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    convert: Callable[..., Any] = unchanged


def convert_weights(
    tensors: Mapping[str, Tensor],
    entries: Sequence[Entry],
    shapes: Mapping[str, Any],
    *,
    prefix: str = "",
    ignored: str = "",
) -> dict[str, Any]:
    """Nested dicts of parameters, made of tensors by entries.

    Args:
        tensors: arrays by name, as ``read_weights`` returns them.
        entries: which parameters are made of which tensors.
        shapes: the parameters that are wanted: nested dicts whose leaves have a shape (and a dtype, in which the
            parameter is then returned: arrays, ``jax.ShapeDtypeStruct``), or are shapes.
        prefix: the beginning of all names (``"model."``), which entries leave out. Tensors without it are not used.
        ignored: a regular expression. Tensors whose whole name, without the prefix, matches it are superfluous on
            purpose.

    Raises:
        WeightsError: all missing and superfluous tensors, parameters of wrong shape or kind or with numbers that their
            dtype has not, parameters without an entry or with two, and entries without a parameter, in one line.
    """
    given = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    wanted = dict(_leaves(shapes))
    sources = {source for entry in entries for source in entry.sources}
    targets = [target for entry in entries for target in entry.targets]
    made: dict[str, Any] = {}
    misshapen = []
    for entry in entries:
        if all(source in given for source in entry.sources):
            for target, array in _made(entry, [np.asarray(given[source]) for source in entry.sources]):
                fault = array if isinstance(array, str) else _fault(array, wanted.get(target))
                if fault:
                    misshapen.append(f"{target} ({fault})")
                elif target in wanted:
                    made[target] = _as_wanted(array, wanted[target])
    problems = {
        "missing": [name for name in sorted(sources) if name not in given],
        "superfluous": [name for name in given if name not in sources and not re.fullmatch(ignored, name)],
        "misshapen": misshapen,
        "parameters without an entry": [name for name in wanted if name not in set(targets)],
        "entries without a parameter": [name for name in targets if name not in wanted],
        "parameters with two entries": sorted({name for name in targets if targets.count(name) > 1}),
    }
    if any(problems.values()):
        parts = (f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names)
        better = find_prefix(tensors, entries)
        hint = "" if better in (None, prefix) else f"; all are there with prefix={better!r}"
        raise WeightsError("the weights do not fit: " + "; ".join(parts) + hint)
    return _nested(made)


def find_prefix(tensors: Mapping[str, Tensor], entries: Sequence[Entry]) -> str | None:
    """The shortest prefix with which every source of the entries is there (``""``, ``"module."``), or None."""
    sources = {source for entry in entries for source in entry.sources}
    first = min(sources, default="")
    prefixes = (name.removesuffix(first) for name in tensors if first and name.endswith(first))
    fitting = (prefix for prefix in prefixes if all(prefix + source in tensors for source in sources))
    return min(fitting, key=len, default=None)


def convolution_kernel(weight: Tensor) -> Tensor:
    """The kernel of a 2-D convolution from ``[O I Y X]`` (torch) to ``[Y X I O]``; ValueError for another rank."""
    return weight.transpose(_axes(weight, (2, 3, 1, 0)))


def dense_kernel(weight: Tensor) -> Tensor:
    """The kernel of a dense layer from ``[O I]`` (torch) to ``[I O]``; ValueError for another rank."""
    return weight.transpose(_axes(weight, (1, 0)))


def frozen_batch_norm(epsilon: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Batch normalization with stored statistics as a scale and a bias.

        scale = weight / √(variance + epsilon)        bias' = bias - mean * scale

    The function takes weight, bias, mean and variance, computes in float64, and returns scale and bias in the dtype of
    the weight. It raises ValueError if variance + epsilon is not positive.
    """

    def scale_and_bias(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        if not np.all(variance.astype(np.float64) + epsilon > 0):
            raise ValueError("a variance is not positive")
        scale = weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return scale.astype(weight.dtype), (bias.astype(np.float64) - mean.astype(np.float64) * scale).astype(
            weight.dtype
        )

    return scale_and_bias


def _axes(weight: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    if weight.ndim != len(axes):
        raise ValueError(f"{weight.ndim} dimensions, not {len(axes)}")
    return axes


def _leaves(shapes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, part in shapes.items():
        if isinstance(part, Mapping):
            yield from _leaves(part, f"{path}{name}/")
        else:
            yield f"{path}{name}", part


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", leaf))


def _made(entry: Entry, arrays: list[np.ndarray]) -> Iterator[tuple[str, Any]]:
    """The targets of an entry with their arrays, or with a text that says why there is none."""
    try:
        result = entry.convert(*arrays)
    except ValueError as error:
        result = (str(error),) * len(entry.targets)
    else:
        result = (result,) if len(entry.targets) == 1 and not isinstance(result, tuple) else result
    yield from zip(entry.targets, result, strict=True)


def _fault(array: np.ndarray, leaf: Any) -> str:
    """Why an array cannot be the parameter; empty if it can, or if there is none."""
    if leaf is None:
        return ""
    if array.shape != _shape(leaf):
        return f"{array.shape}, not {_shape(leaf)}"
    dtype = getattr(leaf, "dtype", array.dtype)
    if _kind(dtype) != _kind(array.dtype):
        return f"{array.dtype}, not {dtype}"
    return "" if _fits(array, dtype) else f"numbers of {array.dtype} that {dtype} has not"


def _fits(array: np.ndarray, dtype: Any) -> bool:
    """Whether finite numbers stay finite in a dtype of the same kind, and integers stay as they are."""
    if array.dtype == dtype or not array.size:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if _kind(dtype) == "floating":
        return bool(np.all(np.isfinite(cast) | ~np.isfinite(array)))
    return np.dtype(dtype).kind == "c" or bool(np.all(cast == array))


def _kind(dtype: Any) -> str:
    if np.dtype(dtype).kind == "c":
        return "complex"
    try:
        return ml_dtypes.finfo(dtype).dtype and "floating"
    except ValueError:
        return np.dtype(dtype).kind


def _as_wanted(array: np.ndarray, leaf: Any) -> np.ndarray:
    return np.array(array, getattr(leaf, "dtype", array.dtype), order="C")


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, array in flat.items():
        *folders, name = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = array
    return nested
