"""The XLA flag set at import: programs that are wrong without it, and its combination with a user's flags."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.xla_flags import FLAG, VALUE

ROWS = np.random.default_rng(0).normal(size=(5, 30, 30)).astype(np.float32)


@pytest.mark.parametrize("shape", [(30, 30), (5, 30, 30)])
@pytest.mark.parametrize("constant", [1.0, 2.0])
def test_sum_of_a_product_with_a_constant_matrix_is_right_under_jit(shape, constant):
    """Without the flag: NaN, or off by up to 1e33 (jaxlib 0.10.2, 0.11, 0.12)."""
    result = jax.jit(lambda rows: ((rows @ jnp.full(shape, constant)) * rows).sum(-1))(ROWS)
    wide = ROWS.astype(np.float64)
    expected = ((wide @ np.full(shape, constant)) * wide).sum(-1)
    np.testing.assert_allclose(result, expected, atol=1e-4, rtol=1e-4)


def test_gradient_of_a_bilinear_sum_is_right_under_jit():
    """The cotangent of a sum is such a constant matrix."""
    result = jax.jit(jax.grad(lambda rows: ((rows @ jnp.ones((30, 30))) * rows).sum()))(ROWS)
    wide = ROWS.astype(np.float64)
    ones = np.ones((30, 30))
    np.testing.assert_allclose(result, wide @ ones + wide @ ones.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 32_769), (np.float64, 16_385)])
def test_vmapped_matrix_vector_product_then_a_sum_is_right_under_jit(dtype, size):
    """https://github.com/jax-ml/jax/issues/39103: 0.8 % off without the flag (jaxlib 0.10.2)."""
    with jax.enable_x64(dtype == np.float64):
        index = np.arange(size, dtype=dtype)
        rows = np.stack([index, 0 * index, 0 * index], axis=1)
        matrix = np.eye(3, dtype=dtype)
        result = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(rows)
    np.testing.assert_allclose(result, index**2, rtol=1e-6)


def imported(before: str = "", **environment: str) -> tuple[str, str]:
    """``XLA_FLAGS`` after ``import jaxseq`` in a fresh process, and its standard error."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAXSEQ_XLA_FLAGS")}
    code = f"{before}\nimport os, jaxseq\nprint(os.environ.get('XLA_FLAGS', ''))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_import_appends_the_flag_to_those_of_the_user():
    assert imported()[0] == f"{FLAG}={VALUE}"
    others = "--xla_cpu_enable_fast_math=false"
    assert imported(XLA_FLAGS=others)[0] == f"{others} {FLAG}={VALUE}"


def test_a_value_of_the_user_is_kept_and_opting_out_leaves_the_flags_alone():
    assert imported(XLA_FLAGS=f"{FLAG}=-dot")[0] == f"{FLAG}=-dot"
    assert imported(JAXSEQ_XLA_FLAGS="off")[0] == ""


def test_a_file_of_flags_is_read_and_joined(tmp_path):
    """XLA takes ``XLA_FLAGS`` for the name of a file if it is no flag; with a flag behind the name it finds none."""
    file, own = tmp_path / "flags.txt", f"{FLAG}={VALUE}"
    file.write_text("--xla_cpu_enable_fast_math=false\n--xla_dump_to=x\n")
    assert imported(XLA_FLAGS=str(file))[0].split() == ["--xla_cpu_enable_fast_math=false", "--xla_dump_to=x", own]
    file.write_text(f"{FLAG}=-dot\n")
    assert imported(XLA_FLAGS=str(file))[0] == str(file)


@pytest.mark.full
@pytest.mark.parametrize("flags", ["no such file", "--xla_dump_to='a b'", "--xla_cpu_enable_fast_math=false word"])
def test_the_flag_stands_before_words_at_which_xla_stops_reading(flags):
    assert imported(XLA_FLAGS=flags)[0] == f"{FLAG}={VALUE} {flags}"


def test_import_warns_where_jax_has_started_without_the_flag():
    started = "import jax; jax.numpy.ones(3)"
    assert "import jaxseq before the first array" in imported(started)[1]
    assert "jaxseq" not in imported(started, XLA_FLAGS=f"{FLAG}={VALUE}")[1]
    assert "jaxseq" not in imported(started, JAXSEQ_XLA_FLAGS="off")[1]
