"""The contract suite as one function for a core and one for a decoder."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.cores import Core, StateCarry
from jaxseq.decoders import Decoder
from jaxseq.testing import laws, mesh_laws
from jaxseq.testing.subject import IDS, TIME, Subject, made, takes_dtypes
from jaxseq.typing import Carry, DType, Features, SegmentIds, Sequence

SOURCE_LENGTH, SOURCE_WIDTH = 5, 6


def check_core(
    make_core: Callable[..., Core], *, quick: bool = False, bfloat16_tolerance: tuple[float, float] = (0.05, 0.1)
) -> None:
    """Checks a core against every law of the contract of cores (``jaxseq/cores/core.py``).

    The laws hold for random parameters in float64: the initial carry, splitting, padding, documents, batch, causality,
    compilation, and an empty input; then splitting without ids in float32, that no ids mean one document, and that
    bfloat16 stays near. If ``make_core`` takes no dtypes, the first are checked in float32 and the last two not at all.

    Args:
      make_core: a core's class or any function that makes one. It is called with ``features=8`` if it has a required
        parameter ``features``, and with ``dtype`` and ``param_dtype`` if it has both (or takes any keyword): by name.
        Inputs are as wide as the core's ``features``. For a core with options, bind them:
        ``functools.partial(jaxseq.cores.make_core, name, features, options)``.
      quick: check the initial carry, splitting into single steps and of a longer input without ids, padding and
        documents alone, in float32: a few seconds.
      bfloat16_tolerance: of values and of gradients in bfloat16, relative to the largest number of an array.

    Raises:
      TypeError: ``make_core`` is an instance of a core, or not callable.
      ContractError: the core breaks a law; the message names the law and the first array that is wrong.
    """
    _require_factory("check_core", make_core)
    if quick:
        single = Subject(make_core, "float32", "float32")
        laws.check_initial_carry(single)
        laws.check_splitting(single, IDS, 1e-4, 1e-3, splits=[[1] * TIME])
        laws.check_padding_is_ignored(single, steps=True)
        laws.check_documents(single, 1e-4)
        laws.check_long_input(single, 1e-4)
        return
    wide = "float64" if takes_dtypes(make_core) else "float32"
    exact = Subject(make_core, wide, wide)
    tolerance, gradient_tolerance = (1e-12, 1e-10) if wide == "float64" else (1e-5, 1e-4)
    laws.check_initial_carry(exact)
    laws.check_dtypes(exact)
    laws.check_long_input(exact, max(tolerance, 1e-11))
    for seed in range(3):
        ids = IDS if seed == 0 else np.random.default_rng(seed).integers(0, 3, IDS.shape).astype(np.int32)
        laws.check_splitting(exact, ids, tolerance, gradient_tolerance, seed)
    laws.check_padding_is_ignored(exact)
    laws.check_padding_in_between(exact, tolerance)
    laws.check_documents(exact, tolerance)
    laws.check_vmap(exact, tolerance)
    laws.check_two_batch_dims(exact, tolerance)
    laws.check_causality(exact, least_reach=0.0)
    laws.check_compiles_once(exact)
    laws.check_empty_input(exact)
    single = exact if wide == "float32" else Subject(make_core, "float32", "float32")
    laws.check_splitting(single, None, 1e-5, 1e-4)
    if wide == "float64":
        laws.check_one_document(single, exact, 1e-4)
        laws.check_low_precision(Subject(make_core, "bfloat16", "float32"), exact, *bfloat16_tolerance)


def check_core_on_devices(make_core: Callable[..., Core], *, devices: int = 2) -> None:
    """Checks that a core computes on several devices what it computes on one: outputs, carry and gradients, in float32.

    The batch is sharded over the devices in three ways: by ``jax.jit`` in an Auto mesh, with the parameters sharded
    too; by ``jax.jit`` in an Explicit mesh; inside ``jax.shard_map`` with its default ``check_vma``. Arrays agree to
    1e-5 of their largest number.

    Args:
      make_core: as in ``check_core``.
      devices: how many; 2 or 4. A CPU counts as several devices if Python is started with
        ``XLA_FLAGS=--xla_force_host_platform_device_count=2`` in the environment.

    Raises:
      TypeError: ``make_core`` is an instance of a core, or not callable.
      ValueError: there are fewer devices, or they do not divide the batch of 4 rows.
      ContractError: the core breaks the law of devices; the message says where and names the first wrong array.
    """
    _require_factory("check_core_on_devices", make_core)
    mesh_laws.require_devices("check_core_on_devices", devices)
    subject = Subject(make_core, "float32", "float32")
    for check in (mesh_laws.check_auto_mesh, mesh_laws.check_explicit_mesh, mesh_laws.check_shard_map):
        check(subject, devices, 1e-5)


def check_decoder(
    make_decoder: Callable[..., Decoder],
    *,
    quick: bool = False,
    bfloat16_tolerance: tuple[float, float] = (0.05, 0.1),
) -> None:
    """Checks a decoder against the contract of cores, with its memory as a constant.

    Arguments and errors are those of ``check_core``. The memory is computed in every call, by ``prepare_memory`` from
    an encoded source ``[*B, 5, 6]`` with one padded position and its mean as the summary; the gradient by the source is
    checked too.
    """
    _require_factory("check_decoder", make_decoder)
    check_core(decoder_as_core(make_decoder), quick=quick, bfloat16_tolerance=bfloat16_tolerance)


def _require_factory(name: str, make: Any) -> None:
    """Raises TypeError for an instance, or for what cannot be called."""
    if isinstance(make, nn.Module):
        raise TypeError(f"{name} needs a class or a function that makes one, not an instance of {type(make).__name__}")
    if not callable(make):
        raise TypeError(f"{name} needs a class or a function that makes one, not {make!r}")


def decoder_as_core(make_decoder: Callable[..., Decoder]) -> Callable[..., Core]:
    """A ``make_core`` for a decoder: the encoded source is part of the carry, so that its gradient is compared too."""

    def make(dtype: DType, param_dtype: DType) -> Core:
        return _WithSource(made(make_decoder, dtype, param_dtype), dtype)

    def make_single() -> Core:
        return _WithSource(made(make_decoder, "float32", "float32"), jnp.float32)

    return make if takes_dtypes(make_decoder) else make_single


class _WithSource(Core):
    decoder: Decoder
    dtype: DType

    @property
    def features(self) -> int:
        """The width of the decoder's output."""
        return self.decoder.features

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> tuple[Carry, Any]:
        """The decoder's carry and the encoded source."""
        numbers = np.random.default_rng(11).normal(size=(SOURCE_LENGTH, SOURCE_WIDTH))
        encoded = jnp.broadcast_to(jnp.asarray(numbers, self.dtype), (*batch_shape, *numbers.shape))
        arguments = jax.random.key(0), encoded, _source_ids(encoded), encoded.mean(-2)
        shapes = jax.eval_shape(
            lambda *a: self.decoder.init_with_output(*a, method=self.decoder.prepare_memory)[0], *arguments
        )
        memory = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return self.decoder.initial_carry(memory, batch_shape, context), encoded

    def run(self, carry: tuple[Carry, Any], xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Any, Features]:
        """Prepares the memory and decodes."""
        own, encoded = carry
        memory = self.decoder.prepare_memory(encoded, _source_ids(encoded), encoded.mean(-2))
        own, ys = self.decoder(own, xs, segment_ids, memory)
        return (own, encoded), ys

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Any) -> Any:
        """The carry unchanged: no law reads a decoder's states."""
        return carry


def _source_ids(encoded: Any) -> Any:
    return jnp.broadcast_to(jnp.asarray([1, 1, 0, 1, 1], jnp.int32), encoded.shape[:-1])
