"""``jaxseq.load`` and ``python -m jaxseq export``: a trained model leaves its run folder."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export

import jaxseq
from jaxseq import cores, pipelines, training
from jaxseq.ops import used_implementations
from jaxseq.weights import read_weights
from tests.compilation import jitted
from tests.pipelines.saved_runs import captioning_run, language_run, translation_run

HYBRID = "lstm:num_heads=2,attention:window=4"


@pytest.fixture
def symbolic_sizes():
    """Annotations of sizes are not checked: a symbolic dimension is no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return language_run(tmp_path_factory.mktemp("run") / "run", HYBRID, steps=(1, 2))


def test_a_model_is_loaded_with_what_belongs_to_it(run):
    trained = jaxseq.load(run)
    assert trained.step == 2 and trained.vocabulary.decode(trained.vocabulary.encode("cab")) == "cab"
    assert trained.config == training.read_json(run / "config.json")
    carry, tokens = trained.pipeline.initial_carry((1,)), jnp.ones((1, 3), jnp.int32)
    expected = jitted(trained.model.init)(jax.random.key(2), carry, tokens)["params"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), trained.params, expected))
    first = jaxseq.load(str(run), step=1, averaged=False)
    assert first.step == 1 and not (first.params["head"]["kernel"] == trained.params["head"]["kernel"]).all()
    with pytest.raises(training.CheckpointError, match="of step 3; there are checkpoints of the steps 1, 2"):
        jaxseq.load(run, step=3)


def test_every_kind_of_run_is_loaded_and_others_are_refused(tmp_path):
    translated, captioned = (jaxseq.load(make(tmp_path / make.__name__)) for make in (translation_run, captioning_run))
    assert isinstance(translated.pipeline, pipelines.Translator) and translated.vocabulary.target.decode([2]) == "d"
    assert isinstance(captioned.pipeline, pipelines.Captioner) and captioned.params.keys() >= {"encoder", "decoder"}
    with pytest.raises(training.RunFolderError, match="is not a run folder"):
        jaxseq.load(tmp_path)
    with training.Run.open(tmp_path / "other", training.TrainConfig(), fingerprint="x"):
        pass
    with pytest.raises(training.RunFolderError, match="holds no trained model"):
        jaxseq.load(tmp_path / "other")
    with pytest.raises(TypeError, match="sequence of texts"):
        jaxseq.load(tmp_path, core="mine.py:Mine")


def test_cores_in_files_within_a_list_run_only_where_they_are_named(tmp_path):
    for name in ("one", "two"):
        text = f"from jaxseq.cores import Elman as Mine\nopen({str(tmp_path / name)!r}, 'a').close()\n"
        (tmp_path / f"{name}.py").write_text(text)
    one, two = (f"{tmp_path / name}.py:Mine" for name in ("one", "two"))
    run = language_run(tmp_path / "run", f"{one}:num_heads=2,gru,{two}")
    for name in ("one", "two"):
        (tmp_path / name).unlink()
    for permitted in ((), (one,), (two,)):
        with pytest.raises(training.RunFolderError, match="whose code would run"):
            jaxseq.load(run, core=permitted)
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()
    assert jaxseq.load(run, core=(one, two)).step == jaxseq.load(run, trust=True).step == 1
    assert pipelines.core_flags([f"gru,{one}:num_heads=2", two]) == f" --core {one} {two}"
    (tmp_path / "two.py").write_text("raise RuntimeError")
    with pytest.raises(training.RunFolderError, match=r"two.py differs from the file"):
        jaxseq.load(run, trust=True)


USE = """
import json, sys
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file

folder = sys.argv[1]
params = load_file(f"{folder}/model.safetensors")
read = lambda name: export.deserialize(bytearray(open(f"{folder}/{name}.jaxexport", "rb").read()))
tokens = np.arange(21, dtype=np.int32).reshape(3, 7) % 4
(carry,) = read("start").call(tokens[:, 0])
whole, logits = read("forward").call(params, carry, tokens, np.ones_like(tokens))
step = jax.jit(read("step").call)
for t in range(7):
    carry, last = step(params, carry, tokens[:, t])
np.testing.assert_allclose(last, logits[:, -1], atol=1e-5)
assert "jaxseq" not in sys.modules
np.save(f"{folder}/logits.npy", logits)
"""


def test_an_exported_model_is_used_without_jaxseq(run, tmp_path, symbolic_sizes):
    trained = jaxseq.load(run)
    made = pipelines.export_model(trained, tmp_path / "out", length=6)
    assert made == json.loads((tmp_path / "out" / "architecture.json").read_text())
    assert made["free_axes"] == ["b", "t"] and made["time_is_fixed_because"] is None
    assert read_weights(tmp_path / "out" / "model.safetensors").keys() == made["parameters"].keys()
    script = tmp_path / "use.py"
    script.write_text(USE)
    done = subprocess.run([sys.executable, "-P", str(script), str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens = jnp.arange(21, dtype=jnp.int32).reshape(3, 7) % 4
    _, logits = trained.model.apply({"params": trained.params}, trained.pipeline.initial_carry((3,)), tokens)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "logits.npy"), logits, atol=1e-5)
    with pytest.raises(FileExistsError, match="not an empty folder"):
        pipelines.export_model(trained, tmp_path / "out")
    with pytest.raises(ValueError, match="length must be at least 1, not 0"):
        pipelines.export_model(trained, tmp_path / "new", length=0)


@pytest.mark.full
@pytest.mark.parametrize("make", [translation_run, captioning_run])
def test_models_with_a_source_are_exported(tmp_path, make, symbolic_sizes):
    made = pipelines.export_model(jaxseq.load(make(tmp_path / "run")), tmp_path / "out", length=6)
    assert made["programs"].keys() == {"start", "step", "forward"}
    assert made["free_axes"] == (["b", "t", "s"] if make is translation_run else ["b", "t"])


@pytest.mark.full
def test_a_core_that_needs_the_number_of_steps_is_exported_with_a_fixed_one(tmp_path, symbolic_sizes):
    (tmp_path / "mine.py").write_text(
        "import flax.linen as nn\nimport jax.numpy as jnp\nfrom jaxseq.cores import StateCore\n"
        "from jaxseq.ops.recurrence.cells import Hidden\n\n\n"
        "class Mine(StateCore):\n"
        "    def initial_state(self, batch_shape):\n"
        "        return Hidden(jnp.zeros((*batch_shape, self.features)))\n\n"
        "    def mix(self, state, xs, segment_ids):\n"
        "        ys = [xs[..., t, :] for t in range(xs.shape[-2])]  # a loop of Python\n"
        "        return Hidden(ys[-1].astype(state.h.dtype)), nn.Dense(self.features)(jnp.stack(ys, -2))\n"
    )
    run = language_run(tmp_path / "run", f"{tmp_path / 'mine.py'}:Mine")
    made = pipelines.export_model(jaxseq.load(run, trust=True), tmp_path / "out", length=6)
    assert made["free_axes"] == ["b"] and "TypeError" in made["time_is_fixed_because"]
    assert made["programs"]["forward"]["arguments"]["tokens"]["shape"] == ["b", 6]


def sized(tree, *sizes):
    """The shapes of arrays with other leading sizes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*sizes, *x.shape[len(sizes) :]), x.dtype), tree)


FREE = ("lstm", "mamba2", "attention")
OTHERS = [pytest.param(name, marks=pytest.mark.full) for name in cores.CORES if name not in FREE]


@pytest.mark.parametrize("name", [*FREE, *OTHERS])
def test_every_core_is_exported_with_free_axes(name, symbolic_sizes):
    fields = {"window": 4} if name == "attention" else {}
    core = cores.make_core(name, 8, **fields)
    b, t = export.symbolic_shape("b, t")
    xs = jax.random.normal(jax.random.key(1), (3, 40, 8))
    carry = core.initial_carry((3,), 3)
    variables = jitted(core.init)(jax.random.key(0), carry, xs)
    free = sized(variables), sized(carry, b), sized(xs, b, t)
    program = export.export(jax.jit(core.apply))(*free)
    found, expected = program.call(variables, carry, xs), jitted(core.apply)(variables, carry, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    if name == "lstm":
        assert used_implementations(core.apply, *free)["recurrence"] == ("reference",)


def test_the_command_is_one_line(run, tmp_path):
    script = Path(__file__).resolve().parents[2] / "experiments" / "export.py"
    done = subprocess.run(
        [sys.executable, str(script), "--run", str(tmp_path / "no"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "does not exist" in done.stderr
