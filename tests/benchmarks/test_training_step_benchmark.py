"""The benchmark of training steps: names of cases, what rows hold, the start of torch's step, the breakdown by part."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.models.configs import AttentionTranslator, LanguageModelConfig, TransformerTranslator

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import step_profile
import training_step
import training_step_cases as cases
from training_step_cases import Case

LSTM, TRANSFORMER = "lstm-8-1-2-5-11", "transformer-64-1-2-5-11"


@pytest.fixture
def no_ceiling(monkeypatch):
    """A ceiling that needs no measuring, and numpy's dtypes promoted as users' are."""
    monkeypatch.setattr(training_step, "matmul_ceiling", lambda dtype: {"float32": 1e11, "bfloat16": 2e11}[dtype])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def lstm():
    """A tiny step, compiled once."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return training_step.jaxseq_step(Case.parse(LSTM))


def test_names_give_models_and_sizes():
    case = Case.parse("lstm-256-2-32-128")
    assert (case.batch, case.length, case.vocabulary, case.tokens_per_step) == (32, 128, 128, 4096)
    assert case.config == LanguageModelConfig(core="lstm", features=256, layers=2, dropout=0.0, block="none")
    transformer = Case.parse("transformer-128-3-4-64-300", "bfloat16")
    assert (transformer.config.core, transformer.config.layers, transformer.vocabulary) == ("attention", 3, 300)
    assert transformer.config.precision == "bfloat16" and transformer.num_heads == 2
    assert Case.parse("lru-256-2-32-128").config.core == "lru"
    assert all(Case.parse(name).name == name for name in cases.TIMED)
    for wrong in ("lstm-256-2-32", "lstm-0-2-32-128", "lstm-a-2-32-128", "lstn-256-2-32-128", "attention-8-1-1-4", ""):
        with pytest.raises(ValueError, match=f"case '{wrong}' is neither .* nor one of demo, translation"):
            Case.parse(wrong)


def test_named_cases_are_the_defaults_of_the_experiments():
    from experiments import language_model, translation

    demo, config = Case.parse("demo"), language_model.Config()
    assert (demo.config, demo.batch, demo.length) == (config.model, config.batch_size, config.length)
    attention, transformer = (Case.parse(f"translation-{kind}") for kind in ("attention", "transformer"))
    assert attention.config == translation.Config().model == AttentionTranslator()
    assert transformer.config == TransformerTranslator() and transformer.batch == translation.Config().batch_size


def test_peers_that_have_no_equal_say_why():
    for name, peer, reason in (
        ("conv-8-1-2-4", "flax", "flax has no module for conv"),
        ("lru-8-1-2-4", "torch", "torch has no module for lru"),
        ("translation-attention", "torch", "no module of a decoder with additive attention"),
        ("translation-transformer", "flax", "no module of an encoder-decoder"),
    ):
        assert reason in (Case.parse(name).peer_gap(peer) or "")
    for name, peer in ((LSTM, "flax"), ("translation-transformer", "torch")):
        assert Case.parse(name).peer_gap(peer) in (None, f"{peer} is not installed")


def test_flops_of_a_step_are_those_of_its_products():
    B, T, F, V = 2, 5, 8, 11
    assert cases.step_flops(Case.parse(LSTM)) == 3 * B * T * 2 * (4 * F * 2 * F + F * V)
    F = 64
    per_token = 4 * F * F + 2 * 4 * F * F + 2 * T * F + F * V  # projections, feed-forward, all pairs, head
    assert cases.step_flops(Case.parse(TRANSFORMER)) == pytest.approx(3 * B * T * 2 * per_token, rel=0.01)


def test_the_breakdown_of_a_step_names_its_parts_and_sums_to_the_operations(lstm, monkeypatch):
    summed = []
    own = step_profile.self_times

    def spy(events):
        summed.append(own(events))
        return summed[-1]

    monkeypatch.setattr(step_profile, "self_times", spy)
    rows = step_profile.breakdown(lstm.executable, lstm.step, 3)
    parts = {(row["part"], row["pass"]): row for row in rows}
    whole = sum(sum(times.values()) for times in summed) / 3 / 1e9
    idle = parts.pop(("no operation", "update"))["seconds"]
    assert sum(row["seconds"] for row in parts.values()) == pytest.approx(whole) and whole > 0 and idle >= 0
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert {("recurrence", "forward"), ("recurrence", "backward"), ("head and loss", "backward"),
            ("embedding", "backward"), ("clip and optimizer", "update")} <= set(parts)  # fmt: skip
    assert {row["part"] for row in rows} <= set(step_profile.PARTS)
    assert not {"attention", "feed-forward", "norms"} & {row["part"] for row in rows}
    text = step_profile.table(rows)
    assert "recurrence" in text and "forward" in text.splitlines()[0]


def test_an_event_has_its_own_time_alone():
    events = [
        step_profile.Event("while", 0.0, 10.0),
        step_profile.Event("dot", 1.0, 4.0),
        step_profile.Event("inner", 2.0, 1.0),
        step_profile.Event("dot", 6.0, 2.0),
        step_profile.Event("copy", 10.0, 3.0),
    ]
    assert step_profile.covered(events) == 13.0
    gap = [*events, step_profile.Event("late", 20.0, 1.0), step_profile.Event("beside", 11.0, 5.0)]
    assert step_profile.covered(gap) == 17.0
    assert step_profile.self_times(reversed(events)) == {"while": 4.0, "dot": 5.0, "inner": 1.0, "copy": 3.0}


PROGRAM = """HloModule jit_step, is_scheduled=true

%half (p.1: f32[4]) -> f32[2] {
  %p.1 = f32[4]{0} parameter(0)
  ROOT %reduce-window.9 = f32[2]{0} reduce-window(%p.1, %c), metadata={stack_frame_id=4}
}

%inside (p.2: f32[4]) -> f32[4] {
  %p.2 = f32[4]{0} parameter(0)
  ROOT %tanh.3 = f32[4]{0} tanh(%p.2), metadata={op_name="jit(step)/jvp(LanguageModel)/head/tanh"}
}

ENTRY %main (x: f32[4]) -> f32[] {
  %x = f32[4]{0} parameter(0), metadata={op_name="state.params"}
  %dot.1 = f32[4]{0} dot(%x, %x), metadata={op_name="jit(step)/transpose(jvp(LanguageModel))/embedding/dot"}
  %copy.1 = f32[4]{0} copy(%dot.1)
  %window.1 = f32[2]{0} fusion(%copy.1), kind=kLoop, calls=%half
  %wrapped_reduce-window.1 = f32[2]{0} fusion(%copy.1, %c), kind=kLoop, calls=%half
  %reduce.1 = f32[] reduce(%wrapped_reduce-window.1, %c), metadata={op_name="jit(step)/reduce_sum"}
  %fusion.2 = f32[4]{0} fusion(%x), kind=kLoop, calls=%inside
  %copy.3 = f32[4]{0} copy(%x)
}
"""


def test_instructions_without_a_path_take_that_of_what_they_compute():
    instructions = step_profile.parse_program(PROGRAM)

    def part(name, known=instructions):
        return step_profile.part_of(step_profile.path_of(name, known, step_profile.users_of(known)))

    assert part("copy.1") == part("window.1") == ("embedding", "backward")
    assert part("wrapped_reduce-window.1") == part("reduce.1") == ("clip and optimizer", "update")
    assert part("fusion.2") == ("head and loss", "forward")
    lonely = {name: one for name, one in instructions.items() if name in ("copy.3", "x")}
    assert part("copy.3", lonely) == ("unnamed", "update")


def test_parts_follow_from_the_names_of_modules():
    block = "core/core.run/cores_0/cores_0.run/cores_1/Sublayer_0"
    for path, part in (
        (f"{block}/core/core.run/core._attend/jaxseq.attention=tiles/while/body/dot_general", "attention"),
        (f"{block}/core/core.run/core._project/query/dot_general", "projections"),
        (f"{block}/core/core.run/layer/Dense_0/dot_general", "feed-forward"),
        (f"{block}/layer_norm/layer/square", "norms"),
        ("core/core.run/cores_2/cores_2.run/layer/rsqrt", "norms"),
        ("core/core.run/cores_0.mix/jaxseq.linear_attention=chunkwise/dot_general", "recurrence"),
        ("core/core.run/cores_0.mix/B/dot_general", "projections"),
        ("Dropout_0/select_n", "dropout"),
        ("embedding/gather", "embedding"),
        (f"{block}/add", "rest"),
    ):
        assert step_profile.part_of(f"jit(train_step)/jvp(LanguageModel)/{path}") == (part, "forward")
        assert step_profile.part_of(f"jit(train_step)/transpose(jvp(LanguageModel))/{path}") == (part, "backward")
    assert step_profile.part_of("jit(train_step)/jvp(jit(_where))/select_n") == ("head and loss", "forward")
    assert step_profile.part_of("jit(train_step)/sqrt") == ("clip and optimizer", "update")


@pytest.mark.full
def test_rows_hold_what_the_docstring_promises(tmp_path, no_ceiling, capsys):
    out = tmp_path / "rows.jsonl"
    names = ["jaxseq", "jaxseq: forward", "flax"]
    for precision in ("float32", "bfloat16"):
        words = ["--case", LSTM, "conv-8-1-2-5-11", "--repeats", "2", "--profile", "--precision", precision]
        training_step.main([*words, "--only", *names, "--out", str(out)])
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(row["case"], row["name"]) for row in rows] == [
            (case, name) for case in (LSTM, "conv-8-1-2-5-11") for name in names
        ]
        for row in rows:
            assert row["precision"] == precision and row["versions"]["jax"] == jax.__version__ and "error" not in row
            if row["case"].startswith("conv") and row["name"] == "flax":
                assert row["left_out"] == "flax has no module for conv" and "median_s" not in row
                continue
            assert row["median_s"] > 0 and row["iqr_s"] >= 0 and row["repeats"] == 2
            assert row["tokens_per_s"] == pytest.approx(10 / row["median_s"])
            whole = row["name"] != "jaxseq: forward"
            assert ("compile_s" in row) == ("flops" in row) == ("fraction_of_products" in row) == whole
            assert ("profile" in row) == (row["name"] == "jaxseq")
            if whole:
                ceiling = {"float32": 1e11, "bfloat16": 2e11}[precision]
                assert row["fraction_of_products"] == pytest.approx(row["flops"] / row["median_s"] / ceiling)
    printed = capsys.readouterr().out
    assert "flax has no module for conv" in printed and "clip and optimizer" in printed


@pytest.mark.full
def test_a_step_that_fails_is_a_row_and_the_others_are_timed(no_ceiling, monkeypatch):
    def broken(case):
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setitem(training_step.MAKERS, "jaxseq: forward", broken)
    rows = training_step.run_case(Case.parse(LSTM), 2, {"jaxseq", "jaxseq: forward"})
    assert rows[1]["error"] == "RuntimeError: no such luck" and "median_s" in rows[0]


@pytest.mark.full
@pytest.mark.parametrize("name", [LSTM, TRANSFORMER, "translation-transformer"])
def test_torch_starts_from_the_same_parameters_and_makes_the_same_steps(name, no_ceiling):
    pytest.importorskip("torch")
    case = dataclasses.replace(Case.parse(name), batch=2)
    ours, torchs = training_step.jaxseq_step(case), training_step.torch_step(case, compiled=False)
    losses = [[step() for _ in range(3)] for step in (ours.step, torchs.step)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=training_step.TOLERANCES["float32"])


@pytest.mark.full
def test_the_demo_drops_and_is_checked_without_dropout(no_ceiling):
    case = Case.parse("demo")
    init, loss, batch = cases.problem(case)
    params = jax.eval_shape(init)
    keys = jax.eval_shape(lambda: jax.random.key(0))
    with_key = jax.make_jaxpr(lambda p, key: loss(p, batch, key)[0])(params, keys)
    without = jax.make_jaxpr(lambda p: loss(p, batch, None)[0])(params)
    assert "random_bits" in str(with_key) and "random_bits" not in str(without)
    assert case.without_dropout().config.dropout == 0 and jnp.shape(batch[0]) == (32, 128)
