"""The search tree of a beam search, to inspect small searches.

    tree = search_tree(step, carry, first_tokens, BeamOptions(num_beams=2), max_length=6, end_token=2)
    print(tree.text(name=vocabulary_entry))
    draw_search_tree(tree.nodes, "tree.png", name=vocabulary_entry)       # jaxseq.plotting

The search is the same as ``beam_search``, run step by step; the tree also holds the candidates that were pruned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxseq.decoding.beam import start_search
from jaxseq.decoding.beam_loop import (
    Candidates,
    SearchConfig,
    SearchInputs,
    SearchState,
    expand,
)
from jaxseq.decoding.beam_results import Hypotheses, trace_back, with_carry
from jaxseq.decoding.constraints import Rule
from jaxseq.decoding.end_tokens import EndToken
from jaxseq.decoding.options import BeamOptions
from jaxseq.decoding.step import AnyStep, Count, Memory
from jaxseq.typing import Array, Carry, Integer


class SearchNode(NamedTuple):
    """A candidate of the search: a hypothesis that extends its parent by one token.

    Attributes:
        parent: the index of the node that it extends, -1 for the empty hypothesis.
        depth: the number of tokens before this one.
        token: the token.
        probability: of the token, given those before it.
        log_probability: of the whole hypothesis.
        status: ``"live"`` (it was extended), ``"finished"`` (it ended) or ``"pruned"``.
        rank: its place among the results, 0 the best; None for the others.
    """

    parent: int
    depth: int
    token: int
    probability: float
    log_probability: float
    status: Literal["live", "finished", "pruned"]
    rank: int | None


@dataclass(frozen=True)
class SearchTree:
    """All candidates of one row's search, parents before children, and its results."""

    nodes: tuple[SearchNode, ...]
    hypotheses: Hypotheses

    def text(self, name: Callable[[int], str] = str) -> str:
        """The tree as lines: token, its probability, the hypothesis' log-probability, status and rank."""
        lines: list[str] = []

        def visit(parent: int, indent: str) -> None:
            children = [i for i, node in enumerate(self.nodes) if node.parent == parent]
            for index in children:
                node = self.nodes[index]
                last = index == children[-1]
                status = "" if node.status == "live" else f"  {node.status}"
                rank = "" if node.rank is None else f"  #{node.rank + 1}"
                token = f"{indent}{'└' if last else '├'}─ {name(node.token)}"
                lines.append(f"{token:<32} {node.probability:6.3f} {node.log_probability:8.3f}{status}{rank}")
                visit(index, indent + ("   " if last else "│  "))

        visit(-1, "")
        return "\n".join(lines)


def search_tree(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "..."],
    options: BeamOptions = BeamOptions(),
    *,
    max_length: Count,
    end_token: EndToken,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
) -> SearchTree:
    """Run ``beam_search`` on one row and record its candidates: each step, at least two extensions for each beam.

    Takes the arguments of ``beam_search``. A batch without rows has an empty tree.

    Raises:
        ValueError: more than one row, more than one group, or as ``beam_search``.
    """
    if np.size(first_tokens) > 1:
        raise ValueError(f"search_tree takes one row, not first_tokens of shape {np.shape(first_tokens)}")
    if options.num_groups != 1:
        raise ValueError(f"search_tree takes one group, not num_groups={options.num_groups}")
    inputs, config, state = start_search(
        step, carry, first_tokens, options, max_length, end_token, constraints, memory, with_pruned=True
    )
    steps: list[Candidates] = []
    slots: list[np.ndarray] = []
    while int(state.position) < config.max_length and not bool(state.done.all()):
        state, candidates = _expand(inputs, state, config)
        steps.append(jax.device_get(jax.tree.map(lambda x: x[0, 0], candidates)))
        at = int(state.position) - 1
        slots.append(np.stack([np.asarray(state.parent_table)[at, 0, 0], np.asarray(state.token_table)[at, 0, 0]], -1))
    hypotheses = trace_back(state, config)
    if options.keep_carry:
        hypotheses = with_carry(step, carry, first_tokens, memory, hypotheses)
    hypotheses = jax.device_get(hypotheses)
    return SearchTree(tuple(_nodes(steps, slots, hypotheses)), hypotheses)


@partial(jax.jit, static_argnames="config")
def _expand(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> tuple[SearchState, Candidates]:
    return expand(inputs, state, config)


def _nodes(steps: list[Candidates], slots: list[np.ndarray], hypotheses: Hypotheses) -> list[SearchNode]:
    """Every candidate as a node; the live ones of a step are the parents of the next step's.

    ``slots[t]`` holds parent and token of each live hypothesis after step t.
    """
    lengths = np.reshape(hypotheses.lengths, -1)
    sequences = np.reshape(hypotheses.tokens, (len(lengths), hypotheses.tokens.shape[-1]))
    ranks = {tuple(row[:n].tolist()): rank for rank, (row, n) in enumerate(zip(sequences, lengths, strict=True)) if n}
    nodes: list[SearchNode] = []
    prefixes: dict[int, tuple[int, ...]] = {-1: ()}
    node_of_slot = {0: -1}
    for depth, (candidates, live) in enumerate(zip(steps, slots, strict=True)):
        extended: dict[tuple[int, int], int] = {}
        for slot, token, _, total, ends, lives in zip(*candidates, strict=True):
            if not np.isfinite(total) or int(slot) not in node_of_slot:
                continue
            parent = node_of_slot[int(slot)]
            before = nodes[parent].log_probability if parent >= 0 else 0.0
            status: Literal["live", "finished", "pruned"] = "finished" if ends else "live" if lives else "pruned"
            index = len(nodes)
            prefixes[index] = (*prefixes[parent], int(token))
            rank = None if status == "pruned" else ranks.get(prefixes[index])
            probability = float(np.exp(total - before))
            nodes.append(SearchNode(parent, depth, int(token), probability, float(total), status, rank))
            if lives:
                extended[int(slot), int(token)] = index
        node_of_slot = {
            slot: extended[int(parent), int(token)]
            for slot, (parent, token) in enumerate(live)
            if (int(parent), int(token)) in extended
        }
    return nodes
