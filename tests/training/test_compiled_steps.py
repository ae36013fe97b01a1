"""Which programs training compiles, when, and that the time of it is in no speed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import ROWS, Chunk, Config, Stream, initial_carry, initial_params, plain_loss, train

from jaxseq.training import OptimizerConfig, TrainConfig, create_state, make_optimizer, make_train_step, throughput
from jaxseq.training.loop import read_shape_steps
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.state import copy_buffers, init_ema

SHORT, LONG = 4, 6
CONFIG = Config(train=TrainConfig(steps=12, log_every=1, checkpoint_every=100))


def lowered(config: OptimizerConfig, steps: int) -> str:
    optimizer = make_optimizer(config, steps)

    def state() -> object:
        return create_state(initial_params(), optimizer, carry=initial_carry(), key=jax.random.key(0))

    return make_train_step(plain_loss, optimizer).lower(jax.eval_shape(state), Stream()(0)).as_text()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_program_depends_on_no_number_of_steps_rate_or_weight_decay(name):
    first = OptimizerConfig(name, learning_rate=0.1, warmup_steps=3, weight_decay=0.1)
    second = OptimizerConfig(name, learning_rate=0.3, warmup_steps=5, weight_decay=0.2, end_fraction=0.1)
    assert lowered(first, 20) == lowered(second, 3000)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_hyperparameters_as_arguments_make_the_update_of_constants(accumulate_steps):
    schedules = OptimizerConfig(warmup_steps=1, weight_decay=0.1, accumulate_steps=accumulate_steps)
    optimizer, params = make_optimizer(schedules, 10), {"w": jnp.ones((2, 3))}
    constant = jax.jit(optimizer.update)
    given = jax.jit(lambda g, s, p, h: optimizer.update(g, s, p, hyperparameters=h))
    states = [optimizer.init(params)] * 2
    for _ in range(4):
        one, states[0] = constant(params, states[0], params)
        other, states[1] = given(params, states[1], params, optimizer.hyperparameters)
        np.testing.assert_allclose(one["w"], other["w"], rtol=1e-6)
    doubled = optimizer.hyperparameters._replace(learning_rate=2e-3)
    update = given(params, optimizer.init(params), params, doubled)[0]["w"]
    np.testing.assert_allclose(update, 2 * constant(params, optimizer.init(params), params)[0]["w"], rtol=1e-6)


def test_a_state_and_its_copy_compile_at_most_the_optimizers_own_state():
    optimizer, params, key = make_optimizer(OptimizerConfig(), 10), initial_params(), jax.random.key(1)
    programs: list[str] = []

    def listen(event: str, seconds: float, **more: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(str(more.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state = create_state(params, optimizer, key=key, ema=True)
        made = len(programs)
        copied = copy_buffers(state)
        init_ema(params)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert made <= 2, programs
    assert len(programs) == made, programs
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(copied.params), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


class TwoLengths:
    """Batches of two lengths; those of an odd step from ``first`` on are longer."""

    fingerprint = "two lengths"

    def __init__(self, first: int, tick=lambda: None):
        self.first, self.tick = first, tick

    def __call__(self, step: int) -> Chunk:
        self.tick()
        length = LONG if step >= self.first and step % 2 else SHORT
        ids = np.ones((ROWS, length), np.int32)
        return Chunk(ids, ids, ids)


class ToldLengths(TwoLengths):
    def shape_steps(self, step: int) -> list[int]:
        return [step, max(step, self.first) + 1 - max(step, self.first) % 2]


def traced(lengths: list[int], batch: Chunk) -> None:
    if not lengths or lengths[-1] != batch.tokens.shape[1]:
        lengths.append(batch.tokens.shape[1])


def test_all_shapes_are_compiled_before_the_first_step_and_told(tmp_path, capsys):
    lengths, at_evaluation = list[int](), list[int]()

    def loss(params, carry, batch, key):
        traced(lengths, batch)
        return plain_loss(params, carry, batch, key)

    def evaluate(params):
        at_evaluation.append(len(lengths))
        return {"one": 1.0}

    config = Config(train=TrainConfig(steps=8, eval_every=1, log_every=10))
    train(tmp_path, config, data=ToldLengths(first=4), loss=loss, evaluate=evaluate)
    assert set(at_evaluation) == {2}
    assert "compiled 2 shapes of batches in" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [TwoLengths, ToldLengths])
def test_no_compilation_is_in_a_speed_but_all_are_in_the_training_time(tmp_path, monkeypatch, kind):
    now, lengths = [0.0], list[int]()
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    def loss(params, carry, batch, key):
        pass_time(1000.0)  # a program is traced once, while it is compiled
        traced(lengths, batch)
        return plain_loss(params, carry, batch, key)

    train(tmp_path, CONFIG, data=kind(first=6, tick=lambda: pass_time(1.0)), loss=loss)
    assert lengths == [SHORT, LONG]
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    speeds = [row["steps_per_second"] for row in rows if "steps_per_second" in row]
    assert len(speeds) == 11  # the first step has none
    assert min(speeds) > 0.3
    assert rows[-1]["train_seconds"] > 2000
    assert [row["train_seconds"] > 2000 for row in rows] == [kind is ToldLengths or row["step"] > 7 for row in rows]


def test_shapes_after_the_end_are_not_compiled():
    steps = read_shape_steps(ToldLengths(first=6), 0, 7)
    assert steps == [0]
    assert read_shape_steps(ToldLengths(first=6), 0, 8) == [0, 7]
    assert read_shape_steps(TwoLengths(first=6), 3, 8) == [3]
