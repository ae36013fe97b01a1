"""Generating from a run folder: every method, constraints, streaming, and what is said to wrong input."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import generate, language_model
from experiments.generate import Config, main
from jaxseq import data, decoding, pipelines, training
from jaxseq.pipelines import TextGenerator
from tests.experiments.small_runs import small_language_model

ROOT = Path(__file__).resolve().parents[2]
FULL = pytest.mark.full


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """The same model object for the same run, so that what was compiled for it is used again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "load_run", functools.cache(pipelines.load_run))
        yield


def load(run: Path) -> pipelines.LoadedRun[TextGenerator]:
    return pipelines.load_run(run, TextGenerator)


def untrained(config: language_model.Config) -> Path:
    """A run folder as training leaves it at step 0, made without compiling a training step."""
    options = {"vocab_size": config.vocabulary_size} if config.tokens == "bpe" else {}
    vocabulary = data.fit_vocabulary(config.tokens, language_model.read(config).train, **options)
    generator = TextGenerator(config.model, vocabulary, attention_lookback=config.length - 1)
    inputs = generator.model.initial_carry((1,)), np.zeros((1, 1), np.int32)
    params = jax.jit(generator.model.init)(jax.random.key(5), *inputs)["params"]
    state = training.create_state(params, training.make_optimizer(config.optimizer, 6), key=jax.random.key(0))
    with training.Run.open(config.run, config, fingerprint="") as run:
        generator.save(run)
        checkpoints = training.Checkpoints(run.checkpoints, provenance=run.provenance)
        checkpoints.save(1, state)
        checkpoints.close()
    return config.run


@pytest.fixture(scope="module")
def run(language_model_run) -> Path:
    """A recurrent model of characters, as the experiment leaves it."""
    return language_model_run[0].run


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory, text_file) -> Path:
    """An attention model of bytes, whose window (8) is shorter than what is generated."""
    folder, options = tmp_path_factory.mktemp("bytes") / "run", {"core_options": ("num_heads=2",)}
    return untrained(small_language_model(folder, text_file, tokens="bytes", core="attention", **options))


@pytest.fixture(scope="module")
def bpe_run(tmp_path_factory, text_file) -> Path:
    """A recurrent model of byte pairs."""
    pytest.importorskip("tokenizers", reason="the text extra is not installed")
    folder = tmp_path_factory.mktemp("bpe") / "run"
    return untrained(small_language_model(folder, text_file, tokens="bpe", vocabulary_size=300))


@pytest.fixture(params=["run", pytest.param("bytes_run", marks=FULL)])
def any_run(request) -> Path:
    return request.getfixturevalue(request.param)


def made(run: Path, **options) -> list[generate.Result]:
    return main(Config(**{"run": run, "max_length": 16} | options))


def log_probabilities(run: Path, results: list[generate.Result]) -> np.ndarray:
    """By one pass over prompts and texts."""
    generator, params = load(run).pipeline, load(run).params
    prompts = [[generator.vocabulary.separator, *generator.vocabulary.encode(r.prompt).tolist()] for r in results]
    rows = [[*prompt, *r.tokens] for prompt, r in zip(prompts, results, strict=True)]
    tokens, _ = decoding.pad_prompts(rows)
    carry = generator.initial_carry((len(rows),))
    _, logits = jax.jit(generator.model.apply)({"params": params}, carry, tokens[:, :-1])
    scores = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[:, 1:, None], axis=-1)[..., 0]
    parts = zip(scores, prompts, rows, strict=True)
    return np.array([score[len(prompt) - 1 : len(row) - 1].sum() for score, prompt, row in parts])


@pytest.mark.full
def test_one_beam_is_greedy_and_so_is_the_largest_of_one(run):
    (greedy,) = made(run, prompt=("the fox",))
    for options in ({"beams": 1, "normalization": "gnmt"}, {"top_k": 1}):
        (other,) = made(run, prompt=("the fox",), **options)
        assert other.tokens == greedy.tokens
        assert other.log_probability == pytest.approx(greedy.log_probability, abs=1e-4)


@pytest.mark.full
def test_log_probabilities_are_the_models_own(any_run):
    results = made(any_run, prompt=("the fox", "a"), beams=4, results=4, normalization="gnmt", alpha=0.8)
    results += made(any_run, prompt=("the", ""), temperature=0.7, top_p=0.8, samples=2)
    assert [r.prompt for r in results] == ["the fox"] * 4 + ["a"] * 4 + ["the"] * 2 + [""] * 2
    said = [r.log_probability for r in results]
    np.testing.assert_allclose(said, log_probabilities(any_run, results), atol=1e-3)
    for result in results:
        assert result.num_tokens == len(result.tokens) <= 16
        assert result.text == load(any_run).pipeline.vocabulary.decode(result.tokens)
    for result in results[:8]:
        divisor = ((5 + result.num_tokens) / 6) ** 0.8
        assert result.score == pytest.approx(result.log_probability / divisor, rel=1e-4)
    assert results[0].score >= results[1].score >= results[2].score >= results[3].score
    assert len({r.tokens for r in results[:4]}) == 4


@pytest.mark.full
@pytest.mark.parametrize("options", [{"beams": 3, "results": 2}], ids=str)
def test_prompts_of_a_batch_get_what_each_gets_alone(any_run, options):
    prompts = ("the quick brown fox", "", "a")
    together = made(any_run, prompt=prompts, **options)
    alone = [result for prompt in prompts for result in made(any_run, prompt=(prompt,), **options)]
    assert [(r.prompt, r.tokens) for r in together] == [(r.prompt, r.tokens) for r in alone]
    np.testing.assert_allclose(*([r.log_probability for r in rows] for rows in (together, alone)), atol=1e-4)


@pytest.mark.full
def test_a_draw_is_its_seeds(run):
    first = made(run, prompt=("the", "fox"), samples=3, seed=1)
    assert made(run, prompt=("the", "fox"), samples=3, seed=1) == first
    assert made(run, prompt=("the", "fox"), samples=3, seed=2) != first
    assert len({r.tokens for r in first}) == 6
    (one,) = made(run, prompt=("the",), seed=1)
    assert one.tokens == first[0].tokens


@pytest.mark.parametrize("options", [{"beams": 3}, {"seed": 3}], ids=str)
def test_a_regular_expression_matches_what_is_generated(run, options):
    (result,) = made(run, prompt=("the",), regex=r"[A-H][a-z ]{5,10}(\.|é|☃)", min_length=9, **options)
    assert re.fullmatch(r"[A-H][a-z ]{5,10}(\.|é|☃)", result.text) and len(result.text) >= 9
    assert result.ended and np.isfinite(result.log_probability)


@pytest.mark.parametrize("options", [{"beams": 3, "results": 3}, {"samples": 3}], ids=str)
def test_what_is_forbidden_never_occurs_and_what_is_required_always(any_run, options):
    vocabulary = load(any_run).pipeline.vocabulary
    common = max("abdghijklmnopqrstuvwxyz \n", key=made(any_run)[0].text.count)
    forbidden = (common, "e", "\n\n")
    results = made(any_run, forbid=forbidden, require=("fé", "é☃"), **options)
    for result in results:
        assert "fé" in result.text and "é☃" in result.text and result.ended
        assert not any(text in result.text for text in forbidden)
        assert set(vocabulary.encode("é").tolist()) <= set(result.tokens)


@FULL
def test_with_byte_pairs_no_spelling_of_a_forbidden_text_gets_through(bpe_run):
    generator = load(bpe_run).pipeline
    vocabulary = generator.vocabulary
    assert isinstance(vocabulary, data.BPE)
    text = "the café ☃\t\x7f\xad\xa0 and"
    assert b"".join(generator.token_bytes[i] for i in vocabulary.encode(text)).decode() == text
    assert all(vocabulary.decode([i]) == s.decode(errors="replace") for i, s in enumerate(generator.token_bytes))
    for result in made(bpe_run, forbid=("th", "e", "é"), require=("ca", "☃"), samples=8, temperature=2.0):
        assert "ca" in result.text and "☃" in result.text and not re.search("th|e|é", result.text)
    (result,) = made(bpe_run, regex=r"(the|fox|dog|\W){3,6}!", beams=2)
    assert re.fullmatch(r"(the|fox|dog|\W){3,6}!", result.text)


@FULL
@pytest.mark.parametrize("options", [{"seed": 2}, {"beams": 3, "results": 3}], ids=str)
def test_a_text_stops_at_a_string_and_is_cut_before_it(any_run, options, capsys):
    decode = load(any_run).pipeline.vocabulary.decode
    (free, *_) = made(any_run, prompt=("the",), **options)
    pairs = [free.text[i : i + 2] for i in range(1, len(free.text) - 1)]
    stop = (next((pair for pair in pairs if "\ufffd" not in pair), "e"), "☃")
    for result in made(any_run, prompt=("the",), stop=stop, **options):
        whole = decode(result.tokens)
        assert not any(string in result.text or string in decode(result.tokens[:-1]) for string in stop)
        assert whole.startswith(result.text)
        assert (len(whole) > len(result.text)) == any(string in whole for string in stop)
    if "seed" in options:
        capsys.readouterr()
        (streamed,) = made(any_run, prompt=("the",), stop=stop, stream=True, **options)
        shown = capsys.readouterr().out.partition("\n")[2]
        assert shown.startswith(f"the{streamed.text}\n--- ")
        assert streamed.text == made(any_run, prompt=("the",), stop=stop, **options)[0].text
        generator, params = load(any_run).pipeline, load(any_run).params
        key, drawn = jax.random.key(0), decoding.SamplingOptions()
        texts = [generator.sample(params, 3, drawn, key=key, max_length=16, stop=s) for s in ((), ("e", " "))]
        assert texts[1] == [pipelines.cut_at(text, ("e", " ")) for text in texts[0]]


@FULL
def test_a_penalty_of_repetitions_counts_the_prompt(run):
    (plain,) = made(run, prompt=("the fox",))
    (penalised,) = made(run, prompt=("the fox",), repetition_penalty=1e9)
    assert len(set(penalised.tokens)) >= len(set(plain.tokens)) and penalised.tokens != plain.tokens
    assert not set(penalised.text[:3]) & set("the fox")


def test_texts_are_whole_and_not_too_short(run):
    assert all(r.ended and r.num_tokens > 9 for r in made(run, samples=3, complete=True, min_length=9))


def test_nothing_is_repeated_and_where_no_token_is_left_it_says_so(run, capsys):
    (result,) = made(run, no_repeat_ngrams=1)
    assert len(set(result.tokens)) == result.num_tokens > 9
    (stuck,) = made(run, no_repeat_ngrams=1, regex="a{3}")
    assert (stuck.text, stuck.num_tokens, stuck.ended, stuck.log_probability) == ("a", 1, False, -np.inf)
    assert "1 tokens, no token was left" in capsys.readouterr().out


@FULL
@pytest.mark.parametrize("options", [{"stream": True}, {"beams": 2, "results": 2}], ids=str)
def test_no_method_makes_up_an_end_where_no_token_is_left(run, options):
    (stuck,) = made(run, no_repeat_ngrams=1, regex="a{3}", **options)
    assert not stuck.ended and stuck.log_probability == -np.inf


@pytest.mark.parametrize("options", [{"temperature": 1.5, "top_k": 20}], ids=str)
def test_a_stream_is_the_same_text_and_cuts_no_character(any_run, options, capsys):
    asked = {"prompt": ("the",), "require": ("é☃",), "forbid": ("e",)} | options
    (whole,) = made(any_run, **asked)
    capsys.readouterr()
    (streamed,) = made(any_run, **asked, stream=True)
    assert streamed.tokens == whole.tokens and streamed.text == whole.text
    assert streamed.log_probability == pytest.approx(whole.log_probability, abs=1e-4)
    shown = capsys.readouterr().out.partition("\n")[2]
    assert shown.startswith(f"the{whole.text}\n--- ") and "é☃" in shown


@FULL
def test_the_search_tree_is_drawn_and_told(run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots extra is not installed")
    (result,) = made(run, prompt=("the",), beams=2, max_length=3, tree=tmp_path / "tree.png")
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "the search of 'the'" in out and "#1" in out and repr(result.text[:1]) in out


@FULL
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/checkpoints/00000006/manifest.json").unlink()
    with pytest.warns(training.CheckpointWarning, match="step 6 .*step 4"):
        made(tmp_path / "run")
    assert "elman at step 4; greedy" in capsys.readouterr().out


def test_a_run_is_read_while_it_is_in_use_and_left_as_it_was(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    config = training.from_json(language_model.Config, training.read_json(run / "config.json"))
    fingerprint = training.read_json(run / "environment.json")["data_fingerprint"]
    with training.Run.open(tmp_path / "run", config, fingerprint=fingerprint):
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
        (result,) = made(tmp_path / "run", json=tmp_path / "results.json")
        assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    assert "elman at step 6; greedy" in capsys.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert written["step"] == 6 and written["method"] == "greedy" and written["config"]["max_length"] == 16
    assert written["results"] == [training.to_json(result)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beams": 4, "temperature": 0.8}, "beams=4 belongs to beam search, temperature=0.8 to sampling"),
        ({"results": 2, "tree": Path("t.png")}, "results=2, tree=t.png belongs to beam search: give beams"),
        ({"beams": 2, "results": 3}, r"\[1, 2\].*not 3"),
        ({"beams": 3, "groups": 2}, "num_beams=3.*num_groups=2"),
        ({"beams": 4, "groups": 2, "tree": Path("t.png")}, "tree=t.png.*groups=2"),
        ({"beams": 0}, "must be at least 1, not 0"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0"),
        ({"top_k": 0}, "top_k.*not 0"),
        ({"top_p": 1.5}, "top_p.*1.5"),
        ({"samples": 0}, "samples.*not 0"),
        ({"max_length": 0}, "max_length.*not 0"),
        ({"min_length": 16, "complete": True}, "min_length=16.*max_length=16"),
        ({"no_repeat_ngrams": 0}, "not 0"),
        ({"prompt": ()}, "prompts"),
        ({"prompt": ("the", "dög ß")}, "prompt: 'dög ß': the model's vocabulary does not have 'ß', 'ö'"),
        ({"require": ("ß",)}, "require: 'ß': the model's vocabulary does not have 'ß'"),
        ({"forbid": ("",)}, "forbid.*''"),
        ({"require": ("the quick", "brown fox")}, "require=.*19 tokens.*max_length=16"),
        ({"require": ("the",), "forbid": ("he",)}, "require=.*forbid=.*no path"),
        ({"regex": "a{30}"}, r"regex=a\{30\}: .*31 tokens.*max_length=16"),
        ({"regex": "[0-9]+"}, r"regex=\[0-9\]\+: .*no path"),
        ({"regex": "a{3}", "min_length": 5}, "min_length=5: .*no path"),
        ({"regex": "(a"}, r"\(a"),
        ({"stream": True, "prompt": ("a", "b")}, "stream.*2 prompts"),
        ({"stream": True, "samples": 2}, "stream.*samples=2"),
        ({"stream": True, "beams": 2}, "stream.*beams=2"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_said(run, options, said):
    with pytest.raises(ValueError, match=said):
        made(run, **options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "run is not a run folder: it does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "run is not a run folder: it has no config.json"),
        (lambda folder: (folder / "text_generator.json").unlink(), "run has no text_generator.json"),
        (lambda folder: written(folder, "text_generator.json", {"depth": 3}), "no TextGenerator: .*depth"),
        (lambda folder: written(folder, "text_generator.json", []), r"no TextGenerator: .* not \[\]"),
        (lambda folder: (folder / "text_generator.json").write_text("{"), "text_generator.json is not valid JSON"),
        (lambda folder: written(folder, "vocabulary.json", "x"), "not the JSON of a vocabulary"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "run has no checkpoint yet"),
        (
            lambda folder: edit(folder, features=16),
            r"step 6 .* config, model or data:\n  model.features: 8 -> 16",
        ),
        (lambda folder: edit(folder, layers=0), "layers must be at least 1, not 0"),
    ],
    ids=[
        "none",
        "no-config",
        "another",
        "unknown",
        "no-object",
        "no-json",
        "no-vocabulary",
        "no-checkpoint",
        "model",
        "value",
    ],
)
def test_a_folder_that_is_no_such_run_is_said(run, tmp_path, change, said):
    shutil.copytree(run, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(training.TrainingError, match=said):
        made(tmp_path / "run")


def edit(folder: Path, **changes) -> None:
    described = json.loads((folder / "text_generator.json").read_text())
    written(folder, "text_generator.json", described | {"model": described["model"] | changes})


def written(folder: Path, name: str, value: object) -> None:
    """Write another value with its checksum."""
    training.RunFiles(folder).write(name, value)


def call(run: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "experiments/generate.py", "--run", str(run), "--max-length", "6", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.full
def test_the_command_line_prints_a_text(run):
    good = call(run, "--prompt", "the", "a", "--forbid", "e", "--samples", "2", "--temperature", "0.8")
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[0] == f"{run}: elman at step 6; sampling, temperature=0.8, samples=2"
    assert good.stdout.count("--- ") == 4


@pytest.mark.full
def test_the_command_line_says_one_line_when_it_cannot(run):
    bad = call(run, "--beams", "2", "--temperature", "0.8")
    assert bad.returncode == 1 and not bad.stdout
    assert (
        bad.stderr.startswith("error: beams=2 belongs to beam search, temperature=0.8") and bad.stderr.count("\n") == 1
    )
