"""The search tree: the same search, and what it dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import model, table_step

from jaxseq.decoding import BeamOptions, beam_search, search_tree
from jaxseq.plotting.search_tree import draw_search_tree

STEP = Partial(table_step, 1.5 * jax.random.normal(jax.random.key(3), (5, 5)))
SIZES = {"end_token": 4, "max_length": 5}
CARRY, FIRST = jnp.zeros((), jnp.int32), jnp.asarray(0)


@pytest.mark.parametrize("num_results", [pytest.param(1, marks=pytest.mark.full), 3])
def test_a_tree_is_of_the_search_itself(num_results: int) -> None:
    options = BeamOptions(3, num_results, normalization="mean")
    tree = search_tree(STEP, CARRY, FIRST, options, **SIZES)
    found = beam_search(STEP, CARRY, FIRST, options, **SIZES)
    jax.tree.map(np.testing.assert_array_equal, tree.hypotheses, found)
    for rank, (tokens, n) in enumerate(zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)):
        (node,) = [node for node in tree.nodes if node.rank == rank]
        np.testing.assert_allclose(node.log_probability, found.log_probabilities[rank], atol=1e-5)
        path = []
        while True:
            path.append(node.token)
            if node.parent < 0:
                break
            node = tree.nodes[node.parent]
        assert path[::-1] == tokens[:n]


def test_probabilities_are_the_models_and_what_is_pruned_has_no_children() -> None:
    tree = search_tree(STEP, CARRY, FIRST, BeamOptions(3, normalization="mean"), **SIZES)
    law = np.asarray(jax.nn.softmax(STEP.args[0]))
    for node in tree.nodes:
        before = tree.nodes[node.parent] if node.parent >= 0 else None
        np.testing.assert_allclose(node.probability, law[before.token if before else 0, node.token], rtol=1e-4)
        assert before is None or (before.status == "live" and before.depth == node.depth - 1)
    for depth in range(5):
        level = [node for node in tree.nodes if node.depth == depth]
        assert sum(node.status == "live" for node in level) <= 3
        assert len(level) <= 6
    assert {node.status for node in tree.nodes} == {"live", "finished", "pruned"}


def test_a_tree_of_a_row_of_a_model_reads_and_draws(tmp_path) -> None:
    m = model("hybrid", 5, seed=1)
    tree = search_tree(m.step, m.carry(1), jnp.zeros(1, jnp.int32), BeamOptions(2), end_token=4, max_length=4)
    text = tree.text(lambda token: "abcd$"[token])
    assert len(text.splitlines()) == len(tree.nodes)
    assert "#1" in text and "pruned" in text
    pytest.importorskip("matplotlib")
    file = draw_search_tree(tree.nodes, tmp_path / "tree.png", lambda token: "abcd$"[token])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_batch_without_rows_has_an_empty_tree() -> None:
    tree = search_tree(STEP, jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32), BeamOptions(2), **SIZES)
    assert tree.nodes == () and tree.text() == "" and tree.hypotheses.tokens.shape == (0, 2, 5)


@pytest.mark.full
def test_a_tree_of_a_search_with_several_end_tokens_and_the_carry_of_its_results() -> None:
    options = BeamOptions(3, keep_carry=True)
    tree = search_tree(STEP, CARRY, FIRST, options, max_length=5, end_token=(4, 2))
    assert {node.token for node in tree.nodes if node.status == "finished"} <= {2, 4}
    assert np.array_equal(tree.hypotheses.carry, tree.hypotheses.lengths)


def test_more_than_a_row_or_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes one row, not first_tokens of shape \(2,\)"):
        search_tree(STEP, jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32), **SIZES)
    with pytest.raises(ValueError, match="num_groups=3"):
        search_tree(STEP, CARRY, FIRST, BeamOptions(3, num_groups=3), **SIZES)
