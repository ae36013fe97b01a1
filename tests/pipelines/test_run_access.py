"""Code that a run folder names is run only with permission."""

import dataclasses
import importlib.util
import json
import marshal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import language_model
from jaxseq import data, training
from jaxseq.models.configs import AttentionTranslator, LanguageModelConfig
from jaxseq.pipelines import RunAccess, SearchConfig, TextGenerator, Translator, core_flags, load_run
from jaxseq.pipelines.finished_runs import read_finished_run
from jaxseq.training import CheckpointMismatchError, RunFolderError, provenance

CORE = """
from pathlib import Path

from jaxseq.cores import Elman as Mine

with open(Path(__file__).with_name("ran"), "a") as file:
    file.write("x")
"""


@pytest.fixture
def mine(tmp_path):
    """The file of a core that tells when it is run, and a run folder that names it."""
    file = tmp_path / "mine.py"
    file.write_text(CORE)
    config = LanguageModelConfig(core=f"{file}:Mine", features=4)
    generator = TextGenerator(config, data.Characters("abc"), attention_lookback=7)
    inputs = generator.model.initial_carry((1,)), jnp.zeros((1, 1), jnp.int32)
    params = generator.model.init(jax.random.key(5), *inputs)["params"]
    optimizer = training.make_optimizer(training.OptimizerConfig(), 6)
    with training.Run.open(tmp_path / "run", language_model.Config(model=config), fingerprint="none") as run:
        generator.save(run)
        store = training.Checkpoints(run.checkpoints, provenance=run.provenance)
        store.save(1, training.create_state(params, optimizer, key=jax.random.key(0)))
        store.close()
    (tmp_path / "ran").unlink()
    return file, run.path


def load(run, **access):
    return load_run(run, TextGenerator, RunAccess(**access))


def test_code_runs_only_where_it_is_named_or_trusted(mine, tmp_path):
    file, run = mine
    ran = tmp_path / "ran"
    with pytest.raises(RunFolderError, match=r"uses the core '.*mine.py:Mine', whose code would run.*--core mine.py"):
        load(run)
    with pytest.raises(RunFolderError, match=r"whose code would run"):
        load(run, core=(f"{file}:Other",))
    assert not ran.exists()
    assert load(run, trust=True).step == 1 and ran.exists()
    moved = tmp_path / "elsewhere" / "mine.py"
    moved.parent.mkdir()
    file.rename(moved)
    with pytest.raises(RunFolderError, match=r"uses the core.*No such file"):
        load(run, trust=True)
    assert load(run, core=(f"{moved}:Mine",)).step == 1
    with pytest.raises(RunFolderError, match=r"uses no core 'other.py:Other'"):
        load(run, core=(f"{moved}:Mine", "other.py:Other"))


def test_the_flags_that_permit_cores_are_told():
    assert core_flags(["lstm", "attention"]) == ""
    assert core_flags(["a b.py:Mine", "lstm", "a b.py:Mine", "c.py:D"]) == " --core 'a b.py:Mine' c.py:D"


@pytest.mark.parametrize("how", [{"trust": True}, {"core": True}], ids=["trust", "core"])
def test_code_that_was_edited_is_refused_before_it_runs(mine, tmp_path, how):
    file, run = mine
    access = how if "trust" in how else {"core": (f"{file}:Mine",)}
    file.write_text(CORE + "# edited\n")
    with pytest.raises(RunFolderError, match=r"mine.py differs from the file that .*run was trained with"):
        load(run, **access)
    assert not (tmp_path / "ran").exists()
    with pytest.warns(training.CheckpointWarning, match="code of core: SHA-256"):
        assert load(run, **access, accept_changes=True).step == 1


def test_bytecode_beside_the_file_is_not_run(mine, tmp_path):
    file, run = mine
    other = compile(f"open({str(tmp_path / 'other')!r}, 'w')\n" + CORE, str(file), "exec")
    cached = Path(importlib.util.cache_from_source(str(file)))
    cached.parent.mkdir(exist_ok=True)
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(file.read_bytes())
    cached.write_bytes(header + marshal.dumps(other))  # of the kind that Python does not compare with the file
    assert load(run, core=(f"{file}:Mine",)).step == 1
    assert (tmp_path / "ran").exists() and not (tmp_path / "other").exists()


def test_files_changed_consistently_are_refused_by_name(mine):
    file, run = mine
    access, files = {"core": (f"{file}:Mine",)}, training.RunFiles(run)
    for name, before, after, said in (
        ("text_generator.json", '"precision": "float32"', '"precision": "bfloat16"', "model.precision: 'float32' ->"),
        ("text_generator.json", '"dropout": 0.1', '"dropout": 0.2', "model.dropout: 0.1 -> 0.2"),
        ("text_generator.json", '"attention_lookback": 7', '"attention_lookback": 6', "attention_lookback: SHA-256"),
        ("vocabulary.json", "abc", "abd", "vocabulary: SHA-256"),
        ("text_generator.json", f"{file}:Mine", "elman", "model.core: 'mine.py:Mine' -> 'elman'"),
    ):
        content = (run / name).read_text()
        assert before in content
        files.write(name, json.loads(content.replace(before, after)))
        with pytest.raises((CheckpointMismatchError, RunFolderError)) as error:
            load(run, **(access if "elman" not in said else {}))
        assert said in str(error.value)
        files.write(name, json.loads(content))
    assert load(run, **access).step == 1
    (run / "checksums.json").unlink()
    with pytest.raises(RunFolderError, match=r"text_generator\.json has no checksum in checksums\.json"):
        load(run, **access)
    assert load(run, **access, accept_changes=True).step == 1


def test_a_finished_run_whose_config_was_edited_is_refused(mine):
    _, run = mine
    saved = training.read_run(run)
    saved.verify_config(saved.config_as(language_model.Config))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 7}))
    with pytest.raises(RunFolderError, match=r"config.json is not what the run wrote"):
        training.read_run(run)
    files = training.RunFiles(run)
    files.write("config.json", config | {"seed": 7})
    saved = training.read_run(run)
    with pytest.raises(RunFolderError, match="config seed: 0 -> 7"):
        saved.verify_config(saved.config_as(language_model.Config))
    environment = json.loads((run / "environment.json").read_text())
    files.write("config.json", config)
    files.write("environment.json", environment | {"data_fingerprint": "other"})
    with pytest.raises(RunFolderError, match="data fingerprint: none -> other"):
        saved.verify_config(dataclasses.replace(saved.config_as(language_model.Config), seed=0))


@pytest.mark.parametrize("name", ["environment.json", "results.json"])
def test_a_finished_run_with_json_of_another_type_is_named(mine, name):
    _, run = mine
    files = training.RunFiles(run)
    files.write("results.json", {})
    assert read_finished_run(run, language_model.Config).results == {}
    files.write(name, [])
    with pytest.raises(RunFolderError, match=f"{name} must hold an object, not a list"):
        read_finished_run(run, language_model.Config)


def test_other_search_or_length_of_translations_is_another_definition():
    words = data.Characters("abc")
    translator = Translator(AttentionTranslator(features=4), words, words, max_length=9)
    stored = provenance.provenance_to_json(provenance.Provenance(model=translator.definition()))
    others = {
        "search.beams: 1 -> 3": translator.with_search(SearchConfig(beams=3)),
        "max_length: SHA-256": translator.with_search(translator.search, 8),
        "num_buckets: SHA-256": Translator(translator.config, words, words, max_length=9, num_buckets=3),
    }
    for said, other in others.items():
        now = provenance.Provenance(model=other.definition())
        (line,) = provenance.provenance_differences(stored, now)
        assert line.startswith(said)
