import jax
import jax.numpy as jnp
import pytest

from jaxseq.precision import POLICIES, at_least_float32, cast_floating


def test_every_policy_keeps_parameters_and_outputs_in_float32():
    assert {name: jnp.dtype(policy.compute).name for name, policy in POLICIES.items()} == {
        "float32": "float32",
        "bfloat16": "bfloat16",
    }
    assert all(p.parameters == p.output == jnp.float32 for p in POLICIES.values())


def test_casting_touches_floating_leaves_only():
    tree = {"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32), "m": jnp.ones(2, bool), "k": jax.random.key(0)}
    cast = cast_floating(tree, jnp.bfloat16)
    assert {name: str(leaf.dtype) for name, leaf in cast.items()} == {
        "w": "bfloat16",
        "n": "int32",
        "m": "bool",
        "k": "key<fry>",
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int32", "float32"),
    ],
)
def test_sums_are_kept_in_at_least_float32(given, kept):
    assert at_least_float32(jnp.dtype(given)).name == kept
