"""A while loop in stages: while few positions of a key-value cache are filled, attention reads only those.

A part of a carry that keeps a limited number of positions in order can be shortened (``ShortenablePart``). A loop that
generates many tokens is compiled as several loops, one after another: stage k runs over the carry whose parts have
``slots_k`` slots, until the next token of some row would not fit. Every iteration computes what it computes in one
loop, up to rounding: the slots that are left out are empty, and attention gives those a weight of 0.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.typing import Array, Bool, Int

State = TypeVar("State")

TOKENS_PER_STAGE = 32
"""A stage generates at least so many tokens: it must be worth its compilation and the copy of the cache."""

MIN_BYTES = 2**22
"""Parts that are smaller in all are read in no time, and not worth a compilation."""

MAX_STAGES = 3
"""The largest number of stages, each of which is compiled."""


@runtime_checkable
class ShortenablePart(Protocol):
    """A part of a carry that keeps position p in slot p while its positions are fewer than its slots."""

    @property
    def num_slots(self) -> int:
        """The number of slots."""

    @property
    def num_read(self) -> Int[Array, "*B"]:
        """The number of positions that each row has read: the position of its next token."""

    def shortened(self, num_slots: int) -> "ShortenablePart":
        """The part with its first slots alone."""

    def extended(self, longer: Any, num_slots: int) -> "ShortenablePart":
        """The part with more slots, those of ``longer`` after its own."""


def while_loop(
    condition: Callable[[State], Bool[Array, ""]],
    body: Callable[[State], State],
    state: State,
    *,
    max_tokens: int,
    tokens_per_iteration: int = 1,
) -> State:
    """``lax.while_loop``, in stages where the state has parts that can be shortened.

    Args:
        condition: whether the loop goes on.
        body: reads up to ``tokens_per_iteration`` tokens per row, whatever the number of slots.
        state: any pytree. Only parts that the tokens can fill by at least a half are shortened: in a longer one most
            positions are a prompt's, or never used.
        max_tokens: the largest number of tokens that the loop reads, of which the number of stages follows.
        tokens_per_iteration: the number of positions that one iteration may fill.
    """
    parts, _ = _split(state)
    chosen = [i for i, part in enumerate(parts) if 0 < part.num_slots <= 2 * max_tokens]
    shortest = min((min(max_tokens, parts[i].num_slots) for i in chosen), default=0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves([parts[i] for i in chosen]))
    worth = jax.default_backend() == "cpu" and size >= MIN_BYTES
    count = min(MAX_STAGES, shortest // TOKENS_PER_STAGE) if worth else 0
    for stage in range(1, count):
        slots = {i: _slots_of_stage(parts[i].num_slots, max_tokens, stage, count) for i in chosen}

        def fits(state: State, slots: dict[int, int] = slots) -> Bool[Array, ""]:
            now, _ = _split(state)
            free = [slots[i] - jnp.max(now[i].num_read, initial=0) for i in chosen]
            return condition(state) & (jnp.min(jnp.stack(free)) >= tokens_per_iteration)

        state = lax.while_loop(fits, body, _resized(state, parts, slots, first=stage == 1))
    if count > 1:
        state = _resized(state, parts, {i: parts[i].num_slots for i in chosen}, first=False)
    return lax.while_loop(condition, body, state)


def _slots_of_stage(num_slots: int, max_tokens: int, stage: int, count: int) -> int:
    """The slots of a stage: those before the generated tokens, and ``stage / count`` of theirs."""
    generated = min(max_tokens, num_slots)
    return num_slots - generated + -(-generated * stage // count)


def _resized(state: State, parts: list[Any], slots: dict[int, int], *, first: bool) -> State:
    """The state whose parts have these numbers of slots; ``parts`` are those before the first stage, in full."""
    now, join = _split(state)
    for i, count in slots.items():
        now[i] = now[i].shortened(count) if first else now[i].extended(parts[i], count)
    return join(now)


def _split(state: State) -> tuple[list[Any], Callable[[list[Any]], State]]:
    """The parts that can be shortened, and a function that puts others in their places."""

    def is_part(node: Any) -> bool:
        return isinstance(node, ShortenablePart)

    leaves, structure = jax.tree.flatten(state, is_leaf=is_part)
    places = [i for i, leaf in enumerate(leaves) if is_part(leaf)]

    def join(parts: list[Any]) -> State:
        replaced = dict(zip(places, parts, strict=True))
        return jax.tree.unflatten(structure, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], join
