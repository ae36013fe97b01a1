"""The search tree of a beam search, for people: as text, and as a figure.

    tree = search_tree(step, carry, first_tokens, end_token=2, num_beams=2, max_length=6)
    print(tree.text(name=vocabulary_entry))
    tree.draw("tree.png", name=vocabulary_entry)

It is the same search, step by step, with what it looked at and dropped kept as well: for a few beams and steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseq.decoding import beam
from jaxseq.decoding.beam_steps import Beams, Candidates, Hypotheses, Plan, Search, expand, read
from jaxseq.decoding.step import Step
from jaxseq.typing import Array, Carry, Integer

Name = Callable[[int], str]
INK, SOFT, KEPT, FOUND, DROPPED = "#20242a", "#667080", "#2b5c8f", "#b5483a", "#aab2bb"


class Node(NamedTuple):
    """An extension that the search looked at.

    ``parent`` is the index of the node that it extends, -1 for the empty hypothesis. ``probability`` is the token's
    own, ``log_probability`` that of the whole hypothesis. ``fate`` is ``"live"`` (it was extended), ``"finished"``
    (it ended in the beam) or ``"dropped"``; ``rank`` is its place among the results, 0 the best, or None.
    """

    parent: int
    depth: int
    token: int
    probability: float
    log_probability: float
    fate: str
    rank: int | None


@dataclass(frozen=True)
class SearchTree:
    """All that one row's search looked at, parents before children, and what it returned."""

    nodes: tuple[Node, ...]
    hypotheses: Hypotheses

    def text(self, name: Name = str) -> str:
        """The tree as lines: a token, its probability, the hypothesis' log-probability, and what became of it."""
        lines: list[str] = []

        def visit(parent: int, indent: str) -> None:
            children = [i for i, node in enumerate(self.nodes) if node.parent == parent]
            for index in children:
                node = self.nodes[index]
                last = index == children[-1]
                fate = "" if node.fate == "live" else f"  {node.fate}"
                rank = "" if node.rank is None else f"  #{node.rank + 1}"
                token = f"{indent}{'└' if last else '├'}─ {name(node.token)}"
                lines.append(f"{token:<32} {node.probability:6.3f} {node.log_probability:8.3f}{fate}{rank}")
                visit(index, indent + ("   " if last else "│  "))

        visit(-1, "")
        return "\n".join(lines)

    def draw(self, file: str | Path, name: Name = str) -> Path:
        """The tree as a picture: kept branches dark, found hypotheses red with their rank, dropped ones pale.

        Needs matplotlib (extra ``plots``).
        """
        from matplotlib.figure import Figure

        places = dict(self._places())
        depth = max((node.depth for node in self.nodes), default=0) + 1
        size = (1.2 + 1.55 * depth, 0.9 + 0.34 * max(len(places), 2))
        figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.set_axis_off()
        on_path = self._on_path()
        for index, node in enumerate(self.nodes):
            x, y = node.depth + 1.0, places[index]
            x0, y0 = (0.0, places[-1]) if node.parent < 0 else (node.depth + 0.62, places[node.parent])
            color = DROPPED if node.fate == "dropped" else FOUND if index in on_path else KEPT
            middle = (x0 + x - 0.06) / 2
            axes.plot(
                [x0, middle, middle, x - 0.06],
                [y0, y0, y, y],
                color=color,
                linewidth=0.7 + 2.2 * node.probability,
                linestyle=(0, (2, 2)) if node.fate == "dropped" else "-",
                solid_joinstyle="round",
                zorder=1 if node.fate == "dropped" else 2,
            )
            ink: dict[str, Any] = {
                "color": color if node.fate == "dropped" else INK,
                "weight": "bold" if index in on_path else "normal",
            }
            axes.text(x, y + 0.02, name(node.token), fontsize=9, va="bottom", parse_math=False, **ink)
            rank = "" if node.rank is None else f"  #{node.rank + 1}"
            told = f"{node.probability:.2f}  ({node.log_probability:.2f}){rank}"
            axes.text(x, y - 0.06, told, color=FOUND if rank else SOFT, fontsize=6.5, va="top")
        axes.text(-0.05, places[-1], "start", color=SOFT, fontsize=8, va="center", ha="right")
        axes.set_xlim(-0.5, depth + 0.9)
        axes.set_ylim(min(places.values(), default=0) - 0.7, 0.9)
        axes.set_title(
            "token: probability (log-probability so far); dashed: dropped; #: returned, by rank",
            loc="left",
            fontsize=7,
            color=SOFT,
        )
        figure.savefig(file, metadata={"Software": None})
        return Path(file)

    def _on_path(self) -> set[int]:
        """The nodes that lead to a result."""
        nodes = set()
        for index, node in enumerate(self.nodes):
            if node.rank is not None:
                while index >= 0:
                    nodes.add(index)
                    index = self.nodes[index].parent
        return nodes

    def _places(self) -> Iterator[tuple[int, float]]:
        """A height for each node: leaves below each other, a parent midway between its children."""
        row = 0.0

        def visit(parent: int) -> Iterator[tuple[int, float]]:
            nonlocal row
            heights = []
            for index, node in enumerate(self.nodes):
                if node.parent == parent:
                    for which, height in visit(index):
                        yield which, height
                    heights.append(height)
            if not heights:
                heights, row = [row], row - 1.0
            yield parent, (heights[0] + heights[-1]) / 2

        return visit(-1)


def search_tree(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "..."],
    *,
    end_token: int | None,
    num_beams: int,
    max_length: int,
    num_results: int | None = None,
    **options: Any,
) -> SearchTree:
    """``beam_search`` of one row, and all that it looked at: twice as many extensions as there are beams, each step.

    Takes what ``beam_search`` takes.

    Raises:
        ValueError: more than one row, more than one group, or as ``beam_search``.
    """
    if np.size(first_tokens) != 1:
        raise ValueError(f"a search tree is of one row, not of {np.shape(first_tokens)}")
    if options.get("num_groups", 1) != 1:
        raise ValueError(f"a search tree is of one group, not of num_groups={options['num_groups']}")
    defaults: dict[str, Any] = {"normalization": "none", "early_stopping": True, "num_groups": 1, "diversity": 0.0}
    defaults |= {"coverage": None, "constraints": (), "memory": None}
    search, plan, beams = beam.begin(
        step,
        carry,
        first_tokens,
        end_token=end_token,
        num_beams=num_beams,
        max_length=max_length,
        num_results=num_results,
        traced=True,
        **(defaults | options),
    )
    steps: list[Candidates] = []
    places: list[np.ndarray] = []
    while int(beams.position) < max_length and not bool(beams.done.all()):
        beams, candidates = _one_step(search, beams, plan)
        steps.append(jax.device_get(jax.tree.map(lambda x: x[0, 0], candidates)))
        at = int(beams.position) - 1
        places.append(np.stack([np.asarray(beams.parents)[at, 0, 0], np.asarray(beams.made)[at, 0, 0]], -1))
    hypotheses = jax.device_get(read(search, beams, plan))
    return SearchTree(tuple(_nodes(steps, places, hypotheses)), hypotheses)


@partial(jax.jit, static_argnames="plan")
def _one_step(search: Search, beams: Beams, plan: Plan) -> tuple[Beams, Candidates]:
    return expand(search, beams, plan)


def _nodes(steps: list[Candidates], places: list[np.ndarray], hypotheses: Hypotheses) -> list[Node]:
    """Every candidate as a node; the live ones of a step are the parents of the next."""
    lengths = np.reshape(hypotheses.lengths, -1)
    sequences = np.reshape(hypotheses.tokens, (len(lengths), -1))
    results = {tuple(row[:n].tolist()): rank for rank, (row, n) in enumerate(zip(sequences, lengths, strict=True)) if n}
    nodes: list[Node] = []
    spelled: dict[int, tuple[int, ...]] = {-1: ()}
    live = {0: -1}
    for depth, (candidates, settled) in enumerate(zip(steps, places, strict=True)):
        born: dict[tuple[int, int], int] = {}
        for parent, token, total, ends, lives in zip(*candidates, strict=True):
            if not np.isfinite(total) or int(parent) not in live:
                continue
            above = live[int(parent)]
            before = nodes[above].log_probability if above >= 0 else 0.0
            fate = "finished" if ends else "live" if lives else "dropped"
            index = len(nodes)
            spelled[index] = (*spelled[above], int(token))
            rank = None if fate == "dropped" else results.get(spelled[index])
            chance = float(np.exp(total - before))
            nodes.append(Node(above, depth, int(token), chance, float(total), fate, rank))
            if lives:
                born[int(parent), int(token)] = index
        live = {
            place: born[int(parent), int(token)]
            for place, (parent, token) in enumerate(settled)
            if (int(parent), int(token)) in born
        }
    return nodes
