"""A figure of a beam search's tree."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxseq.plotting.labels import text_label
from jaxseq.plotting.style import BLUE, INK, MUTED, RED, SOFT, figure_format, make_figure, save_figure

PRUNED = (0, (2, 2))
"""The line style of branches that were pruned."""


@runtime_checkable
class Node(Protocol):
    """A node of the tree, such as ``jaxseq.decoding.SearchTree`` holds: a hypothesis and its last token."""

    @property
    def parent(self) -> int:
        """The index of the parent, -1 for a child of the root."""

    @property
    def depth(self) -> int:
        """The number of tokens before this one."""

    @property
    def token(self) -> int:
        """The token id."""

    @property
    def probability(self) -> float:
        """The probability of the token, given those before it."""

    @property
    def log_probability(self) -> float:
        """The log-probability of the hypothesis."""

    @property
    def status(self) -> str:
        """``"live"``, ``"finished"`` or ``"pruned"``."""

    @property
    def rank(self) -> int | None:
        """The place among the results, 0 the best; None for the others."""


def draw_search_tree(nodes: Sequence[Node], file: str | Path, name: Callable[[int], str] = str) -> Path:
    """Draw the tree to a file and return its path.

    Branches on the way to a result are red, the result with its rank; other branches that were kept are blue, pruned
    ones grey and dashed, as a legend says. The width of a branch grows with the probability of its token. Needs
    matplotlib (extra ``plots``).

    Args:
        nodes: the nodes, parents before children.
        file: the PNG, SVG or PDF to write.
        name: the text of a token.

    Raises:
        ValueError: a file of another format.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    heights = dict(_heights(nodes))
    depth = max((node.depth for node in nodes), default=0) + 1
    size = (max(5.0, 1.2 + 1.55 * depth), 1.3 + 0.34 * max(len(heights), 2))
    figure = make_figure(*size)
    axes = figure.subplots()
    axes.set_axis_off()
    on_path = _ancestors_of_results(nodes)
    for index, node in enumerate(nodes):
        start = (0.0, heights[-1]) if node.parent < 0 else (node.depth + 0.62, heights[node.parent])
        _draw_branch(axes, node, start, (node.depth + 1.0, heights[index]), index in on_path, name)
    axes.text(-0.05, heights[-1], "start", color=SOFT, fontsize=8, va="center", ha="right")
    axes.set_xlim(-0.5, depth + 0.9)
    axes.set_ylim(min(heights.values(), default=0) - 0.7, 0.9)
    title = "token, below it: probability (log-probability of the hypothesis, nats), #rank of a result"
    axes.set_title(title, loc="left", fontsize=7, color=SOFT)
    _legend(figure)
    return save_figure(figure, file, _describe(nodes, name))


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=RED, linewidth=1.8, label="on the way to a result"),
        Line2D([], [], color=BLUE, linewidth=1.8, label="kept"),
        Line2D([], [], color=MUTED, linewidth=1.2, linestyle=PRUNED, label="pruned"),
        Line2D([], [], color=SOFT, linewidth=0.9, label="probability 0.1"),
        Line2D([], [], color=SOFT, linewidth=2.7, label="probability 0.9"),
    ]
    figure.legend(handles=entries, loc="outside lower left", ncols=3, frameon=False, fontsize=7, labelcolor=SOFT,
                  handlelength=2.2, columnspacing=1.2)  # fmt: skip


def _describe(nodes: Sequence[Node], name: Callable[[int], str]) -> str:
    """The size of the tree, and its results, best first."""
    texts = []
    for node in sorted((node for node in nodes if node.rank is not None), key=lambda node: node.rank or 0):
        tokens, index = [name(node.token)], node.parent
        while index >= 0:
            tokens.append(name(nodes[index].token))
            index = nodes[index].parent
        texts.append(
            f"#{(node.rank or 0) + 1} {' '.join(reversed(tokens))} (log-probability {node.log_probability:.2f})"
        )
    return f"The tree of a beam search with {len(nodes)} nodes; results: {'; '.join(texts) or 'none'}."


def _draw_branch(
    axes: Any,
    node: Node,
    start: tuple[float, float],
    end: tuple[float, float],
    on_path: bool,
    name: Callable[[int], str],
) -> None:
    """The line from a node's parent, the token, and its numbers below."""
    (x0, y0), (x, y) = start, end
    pruned = node.status == "pruned"
    color = MUTED if pruned else RED if on_path else BLUE
    middle = (x0 + x - 0.06) / 2
    axes.plot(
        [x0, middle, middle, x - 0.06],
        [y0, y0, y, y],
        color=color,
        linewidth=0.7 + 2.2 * node.probability,
        linestyle=PRUNED if pruned else "-",
        solid_joinstyle="round",
        zorder=1 if pruned else 2,
    )
    weight = "bold" if on_path else "normal"
    ink = color if pruned else INK
    label = text_label(name(node.token))
    style = {"fontsize": 9, "va": "bottom", "color": ink, "weight": weight, "family": label.families}
    axes.text(x, y + 0.02, label.texts[0], parse_math=False, **style)
    rank = "" if node.rank is None else f"  #{node.rank + 1}"
    numbers = f"{node.probability:.2f}  ({node.log_probability:.2f}){rank}"
    axes.text(x, y - 0.06, numbers, color=RED if rank else SOFT, fontsize=6.5, va="top")


def _ancestors_of_results(nodes: Sequence[Node]) -> set[int]:
    """The results, and the nodes on the way to them."""
    found = set()
    for index, node in enumerate(nodes):
        if node.rank is not None:
            while index >= 0:
                found.add(index)
                index = nodes[index].parent
    return found


def _heights(nodes: Sequence[Node]) -> Iterator[tuple[int, float]]:
    """The height of each node and of the root (-1): leaves one below another, a parent midway between its children."""
    children: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        children.setdefault(node.parent, []).append(index)
    row = 0.0

    def visit(parent: int) -> Iterator[tuple[int, float]]:
        nonlocal row
        heights = []
        for index in children.get(parent, []):
            for descendant, height in visit(index):
                yield descendant, height
            heights.append(height)
        if not heights:
            heights, row = [row], row - 1.0
        yield parent, (heights[0] + heights[-1]) / 2

    return visit(-1)
