"""The contract that every core obeys, and the two base classes that enforce it.

    core.apply(variables, carry, xs, segment_ids) -> (carry, ys)

**The splitting law.** Split a sequence anywhere and pass the carry along: outputs, final carry and gradients equal
those of the whole sequence. A step is a piece of length one; streaming, truncated back-propagation and decoding follow.

Padding (id 0) changes neither the carry nor any output or gradient at a real position, even where it holds NaN;
outputs at padded positions are zero. A change of id starts another document, also at a split: the carry stores the
last id. All leaves of a carry lead with the batch dimensions. Dropout is active exactly if a ``dropout`` key is given.

``jaxseq.testing.check_core`` tests a core against this contract, ``check_core_on_devices`` on several devices.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.unbound import UnboundMethods
from jaxseq.layers.capture import GATES, STATES, StepStates, keep_last, requested
from jaxseq.ops import segments
from jaxseq.ops.batch_shards import vary_alike
from jaxseq.ops.inputs import check_inputs, check_leading, check_leaves
from jaxseq.typing import Array, Carry, DType, Features, Float, Int, SegmentIds, Sequence

State = Any
"""A pytree of arrays that lead with the batch dimensions, by convention a NamedTuple."""


class StateCarry(NamedTuple):
    """The carry of a ``StateCore``: its state, and the id of the last real position (0 before any input)."""

    state: State
    segment_id: Int[Array, "*B"]


class Core(UnboundMethods, abc.ABC):
    """Abstract: mixes information along time under the splitting law.

    Subclass ``StateCore`` if the carry is a recurrent state. Subclass ``Core`` if it is something else (a key-value
    cache, the carries of other cores), and define ``make_carry``, ``run`` and ``map_states``; parameters may be made in
    ``run`` without ``nn.compact``. All of these methods may make other cores, ``Stacked((LSTM(8), GRU(8)))``, and may
    use those made in ``setup``. The methods marked ``final`` cannot be overridden.

    Every core has ``features`` (a field or a property): the width of its output.
    """

    unbound_methods: ClassVar[tuple[str, ...]] = ("make_carry", "initial_state", "map_states", "features")

    zeroes_padding: ClassVar[bool] = False
    """True if ``run`` takes anything at padded positions and returns zeros there, as a core made of cores can: then
    they are not zeroed again. XLA fuses these selections along the residuals, which made a decoding step slow."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses a class that overrides a final method, by itself, a field or a mixin; ``nn.remat`` may wrap one.

        Raises:
          TypeError: the subclass overrides a final method.
        """
        for base in cls.__mro__[1:]:
            for name, inherited in vars(base).items():
                if not getattr(inherited, "__final__", False):
                    continue
                found: Any = next(vars(other)[name] for other in cls.__mro__ if name in vars(other))
                field = name in inspect.get_annotations(cls)
                if field or inspect.unwrap(found) is not inspect.unwrap(inherited):
                    raise TypeError(
                        f"{cls.__name__} overrides {base.__name__}.{name}, which is final because it enforces the "
                        f"contract of cores (checks, padding, documents). Subclass StateCore and define "
                        f"initial_state(batch_shape) and mix(state, xs, segment_ids); if the carry is not a recurrent "
                        f"state, subclass Core and define make_carry, run and map_states."
                    )
        super().__init_subclass__(**options)

    @abc.abstractmethod
    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Carry:
        """The initial carry; a cache in it holds ``context`` earlier positions. Works unbound."""

    @abc.abstractmethod
    def run(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Carry, Features]:
        """Continues from ``carry`` over ``xs``, which are zero at padded positions; outputs there are ignored."""

    @abc.abstractmethod
    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Carry) -> Carry:
        """The carry with ``function`` applied to each recurrent state in it, in order; works unbound.

        A core without a recurrent state returns the carry unchanged.
        """

    @final
    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The initial carry; a cache in it holds ``context`` earlier positions. Works unbound."""
        return self.make_carry(batch_shape, context)

    @final
    @nn.compact
    def __call__(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None = None) -> tuple[Carry, Features]:
        """Continues from ``carry`` over ``xs``; ``segment_ids=None`` continues the carry's document without padding.

        Raises:
          ValueError: ``xs`` or ``segment_ids`` has a wrong shape or dtype, or a leaf of the carry does not lead with
            the batch dimensions of ``xs``.
        """
        check_inputs(type(self).__name__, xs, segment_ids)
        check_leading(type(self).__name__, "a carry", carry, xs)
        carry, xs, segment_ids = vary_alike((carry, xs, segment_ids))
        if self.zeroes_padding:
            return self.run(carry, xs, segment_ids)
        carry, ys = self.run(carry, segments.without_padding(xs, segment_ids), segment_ids)
        return carry, segments.without_padding(ys, segment_ids)

    @final
    def hidden(self, carry: Carry) -> Float[Array, "*B F"]:
        """The hidden state ``h`` of the last recurrent state in the carry that has one; works unbound.

        Raises:
          ValueError: the core has no state with a field ``h``.
        """
        found: list[Array] = []

        def collect(part: StateCarry) -> StateCarry:
            if hasattr(part.state, "h"):
                found.append(part.state.h)
            return part

        self.map_states(collect, carry)
        if not found:
            raise ValueError(f"{type(self).__name__} has no hidden state h; DecoderBlock works with any core")
        return found[-1]

    @final
    def reset_states(self, carry: Carry, segment_ids: SegmentIds | None) -> Carry:
        """The carry with each recurrent state reset to zeros where ``segment_ids`` start another document.

        ``core(carry, xs, segment_ids)`` does this itself; call it only to read states before the core.
        """
        return self.map_states(lambda part: _entering(part, segment_ids), carry)


class StateCore(Core):
    """Abstract: a core whose carry is a recurrent state. A subclass defines ``initial_state`` and ``mix``.

    The base class checks all arguments, resets the state where the call starts another document, stores the last id,
    casts the input to ``dtype`` and the output too, and zeroes padded positions on entry and at the output. Within a
    call ``mix`` must itself honour ``segment_ids``, which the ops do. A complete core::

        class Leaky(StateCore):
            \"\"\"``h_t = sigmoid(a) * h_{t-1} + W x_t``.\"\"\"

            def initial_state(self, batch_shape):
                return Hidden(jnp.zeros((*batch_shape, self.features), at_least_float32(self.param_dtype)))

            def mix(self, state, xs, segment_ids):
                dtype = state.h.dtype
                decay = self.param("a", nn.initializers.ones, (self.features,), self.param_dtype).astype(dtype)
                xs = nn.Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs).astype(dtype)

                def step(state, x):
                    return Hidden(jnp.broadcast_to(nn.sigmoid(decay), x.shape) * state.h + x)

                return plain_recurrence(step, state, xs, segment_ids=segment_ids)

    ``jaxseq.testing.check_core(Leaky)`` tests it against the contract.
    """

    features: int
    dtype: DType = dataclasses.field(default=jnp.float32, kw_only=True)
    param_dtype: DType = dataclasses.field(default=jnp.float32, kw_only=True)

    @abc.abstractmethod
    def initial_state(self, batch_shape: tuple[int, ...]) -> State:
        """The initial state: zeros, of at least float32; works unbound.

        The state is a pytree, by convention a NamedTuple; ``hidden`` returns its field ``h``.
        """

    @abc.abstractmethod
    def mix(self, state: State, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[State, Features]:
        """The state after ``xs`` and the outputs ``[*B, T, features]``; parameters are made here, as in ``nn.compact``.

        ``segment_ids`` must reset the state to zeros where the id of a real position differs from that of the real
        position before it, and hold the state at padded positions: pass them to an op (``plain_recurrence`` for a
        hand-written step, ``linear_recurrence``, ...).
        """

    @final
    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> StateCarry:
        """The initial state and id 0; ``context`` is ignored."""
        return StateCarry(self.initial_state(batch_shape), jnp.zeros(batch_shape, jnp.int32))

    @final
    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: StateCarry) -> StateCarry:
        """Applies ``function`` to the carry, which is a single recurrent state."""
        return function(carry)

    @final
    def run(self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[StateCarry, Features]:
        """Resets the state at a document's start, mixes, and stores the last id."""
        batch = xs.shape[:-2]
        if not isinstance(carry, StateCarry):
            raise ValueError(
                f"{type(self).__name__} needs a StateCarry, as initial_carry makes it, not {type(carry).__name__}"
            )
        needed = jax.eval_shape(lambda: self.make_carry(batch, 0))
        check_leaves(f"{type(self).__name__} is given a carry", carry, needed, "initial_carry")
        if requested(self, STATES):
            keep_last(self, STATES, STATES, self._each_step(carry, xs, segment_ids))
        state, segment_id = _entering(carry, segment_ids)
        state, ys = self.mix(state, xs.astype(self.dtype), segment_ids)
        check_leaves(f"{type(self).__name__} returns from mix a state", state, needed.state, "initial_state")
        if ys.shape != (*xs.shape[:-1], self.features):
            raise ValueError(
                f"{type(self).__name__} returns from mix outputs of shape {ys.shape}, not [*B, T, features] = "
                f"{(*xs.shape[:-1], self.features)}"
            )
        return StateCarry(state, segment_id), ys.astype(self.dtype)

    def _each_step(self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None) -> StepStates:
        """The state after each position, by one call for each: the splitting law."""
        core, variables, time = self.clone(parent=None), self.variables, xs.ndim - 2

        def step(carry: StateCarry, position: tuple) -> tuple[StateCarry, StepStates]:
            x, ids = position
            (carry, _), recorded = core.apply(variables, carry, x, ids, mutable=[GATES])
            gates = recorded.get(GATES, {}).get(GATES, {})
            return carry, StepStates(carry.state, {name: gates[name].squeeze(time) for name in gates})

        ids = None if segment_ids is None else jnp.moveaxis(segment_ids, -1, 0)[..., None]
        _, steps = lax.scan(step, carry, (jnp.moveaxis(xs, time, 0)[..., None, :], ids))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, time), steps)


def _entering(carry: StateCarry, segment_ids: SegmentIds | None) -> StateCarry:
    """The state at the start of a call, and the id of the last real position after it.

    The state is reset to zeros where the first real position belongs to another document than the carry's.
    """
    if segment_ids is None:
        return StateCarry(carry.state, jnp.where(carry.segment_id == 0, 1, carry.segment_id))
    ids = segment_ids.astype(carry.segment_id.dtype)
    first = segments.first_id(ids)
    afresh = (first != 0) & (carry.segment_id != 0) & (first != carry.segment_id)
    return StateCarry(segments.reset(carry.state, afresh), segments.last_id(ids, carry.segment_id))
