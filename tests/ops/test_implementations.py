"""A program says which implementations it runs, whatever it is wrapped in."""

import jax
import jax.numpy as jnp

from jaxseq.ops.implementations import implementations, running


@jax.custom_vjp
def twice(x: jax.Array) -> jax.Array:
    """An op with a gradient of its own."""
    return x + x


twice.defvjp(lambda x: (twice(x), None), lambda _, g: (g + g,))


def program(x: jax.Array) -> jax.Array:
    """One op at the top, another inside a scan, a third never."""
    with running("outer", "two-level"):
        x = twice(x)

    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        with running("inner", "fast" if row.shape[-1] > 2 else "plain"):
            return twice(carry) + row, None

    return jax.lax.scan(body, x[0], x)[0].sum()


def test_names_are_found_under_every_transformation() -> None:
    x = jnp.ones((2, 3))
    want = {"inner": ("fast",), "outer": ("two-level",)}
    assert implementations(program, x) == want
    assert implementations(jax.jit(jax.value_and_grad(jax.checkpoint(program))), x) == want
    assert implementations(jax.vmap(program), x[None]) == want
    assert implementations(program, jax.ShapeDtypeStruct((2, 2), x.dtype)) == want | {"inner": ("plain",)}
    assert implementations(jnp.sin, x) == {}
