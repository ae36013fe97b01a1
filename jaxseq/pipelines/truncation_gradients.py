"""The gradients of truncated back-propagation in its three modes, and their bias against full back-propagation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseq import analysis, training
from jaxseq.data import Batch, Dataset, SequenceChunks
from jaxseq.training.widening import apply_updates, with_widening
from jaxseq.typing import Carry, PyTree


class PathGradients(NamedTuple):
    """Mean gradients over the chunks of a sequence, all at the same parameters; see :class:`TruncationGradients`."""

    full: PyTree
    zero: PyTree
    carry: PyTree
    recompute: PyTree


class TruncationGradients:
    """Gradients of the batch of step 0 of ``data``, [B, T], cut into n = T / cut chunks, along parameters p_1 ... p_n.

    Let l_j(p, c) be the mean loss of chunk j that starts from the carry c, and c_j(p) the carry that the parameters p
    compute from the initial carry c_1 over the chunks before j. Each gradient is a mean over the chunks j:

        full       d/dp l_j(p, c_j(p))     at p_j: through the chunk and all chunks before it
        zero       d/dp l_j(p, c_1)        at p_j
        carry      d/dp l_j(p, s_j)        at p_j; s_1 = c_1, and s_{j+1} is the carry that p_j computes from s_j
        recompute  d/dp l_j(p, c_j(p_j))   at p_j, with the carry constant

    On a ``moving`` path p_{j+1} is p_j after an update with the gradient of ``carry`` on chunk j, as in training in
    that mode, so that s_j is stale. Otherwise the parameters are at rest, p_j = p_1: then ``full`` is the gradient of
    the loss of the whole sequence, and ``carry`` equals ``recompute``. The carries of ``recompute`` are those of
    ``training.Truncation``, by n (n - 1) / 2 forward passes.

    Args:
        loss: ``loss(params, carry, batch, key) -> (scalar, Aux)``, a mean over positions, without randomness.
        scored_loss: ``scored_loss(params, carry, batch, scored)``, the same mean over the positions scored[B, T] only.
        optimizer: makes the updates of a moving path; the states' optimizer state must be of its kind.
        data: a dataset of batches [B, T].
        initial_carry: for B rows.
    """

    def __init__(
        self,
        loss: training.Loss[Batch],
        scored_loss: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        data: Dataset[Batch],
        initial_carry: Carry,
    ) -> None:
        self.loss, self.data, self.initial_carry = loss, data, initial_carry
        self.optimizer = with_widening(optimizer)
        self.gradient = jax.jit(jax.grad(loss, has_aux=True))
        self.full_gradient = jax.jit(jax.grad(scored_loss))
        self.update = jax.jit(self.updated)
        self.truncations: dict[int, training.Truncation] = {}  # by cut, compiled once

    def updated(self, params: PyTree, opt_state: PyTree, gradient: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and optimizer state after one update."""
        updates, opt_state = self.optimizer.update(gradient, opt_state, params, weight=jnp.ones(()))
        return apply_updates(params, updates), opt_state

    def __call__(self, state: training.TrainState, cut: int, *, moving: bool) -> PathGradients:
        """The gradients from the parameters and the optimizer state of ``state`` on.

        Raises:
            ValueError: a cut that does not divide T.
        """
        chunks = SequenceChunks(self.data, cut)
        if cut not in self.truncations:
            self.truncations[cut] = training.Truncation("recompute", self.loss, chunks, self.initial_carry)
        recompute = self.truncations[cut]
        n, sequences, total = chunks.chunks_per_sequence, self.data(0), None
        state = state._replace(carry=self.initial_carry)
        for j in range(n):
            carries = (self.initial_carry, state.carry, recompute.prepare(state, j).carry)
            (zero, _), (stale, aux), (fresh, _) = [
                self.gradient(state.params, carry, chunks(j), state.key) for carry in carries
            ]
            parts = [zero, stale, fresh]
            if moving:
                scored = np.broadcast_to(np.arange(n * cut) // cut == j, sequences.tokens.shape)
                parts.append(self.full_gradient(state.params, self.initial_carry, sequences, scored))
                params, opt_state = self.update(state.params, state.opt_state, stale)
                state = state._replace(params=params, opt_state=opt_state)
            state = state._replace(carry=aux.carry)
            total = parts if total is None else jax.tree.map(jnp.add, total, parts)
        zero, stale, fresh, *full = jax.tree.map(lambda x: x / n, total)
        if not moving:
            scored = np.ones(sequences.tokens.shape, bool)
            full = [self.full_gradient(state.params, self.initial_carry, sequences, scored)]
        return PathGradients(full[0], zero, stale, fresh)


class BiasRow(NamedTuple):
    """The bias of one gradient (:func:`jaxseq.analysis.gradient_bias`)."""

    moment: float  # a fraction of a training run
    cut: int
    mode: str
    parameters: str  # a group of parameters, or "all"
    cosine: float
    norm_ratio: float
    relative_error: float


def bias_rows(gradients: TruncationGradients, state: training.TrainState, cut: int, *, moment: float) -> list[BiasRow]:
    """The biases at one cut, for each group of parameters.

    ``zero`` and ``recompute`` are against the full gradient, at rest; ``carry`` and ``recompute (path)`` are against
    the full gradient along a moving path; ``stale`` is ``carry`` against ``recompute`` along that path.
    """
    rest, path = gradients(state, cut, moving=False), gradients(state, cut, moving=True)
    compared = {
        "zero": (rest.full, rest.zero),
        "recompute": (rest.full, rest.recompute),
        "carry": (path.full, path.carry),
        "recompute (path)": (path.full, path.recompute),
        "stale": (path.recompute, path.carry),
    }
    return [
        BiasRow(moment, cut, mode, group, *analysis.gradient_bias(exact, approximate))
        for mode, trees in compared.items()
        for group, (exact, approximate) in parameter_groups(*trees).items()
    ]


def parameter_groups(*trees: PyTree) -> dict[str, list[list[Any]]]:
    """The leaves of each tree by group: all, head, recurrent (``recurrent`` in a leaf's name), input (all others)."""
    groups: dict[str, list[list[Any]]] = {}
    for index, tree in enumerate(trees):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            name = "head" if names[0] == "head" else "recurrent" if "recurrent" in names[-1] else "input"
            for group in ("all", name):
                groups.setdefault(group, [[] for _ in trees])[index].append(leaf)
    return groups
