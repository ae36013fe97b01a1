"""A damaged run folder: whatever has happened to a file of it, reading and resuming give the same as before, or an
error that names the file; never something else, and never a hang.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from compilation import unoptimized
from folder_damage import FLIPS, OF_FILES, OF_FOLDERS, Damage, TooSlowError, bounded, edited, spaced, swapped

from experiments import language_model, translation
from jaxseq import data, pipelines, training
from jaxseq.models.configs import AttentionTranslator
from jaxseq.pipelines import Reversal, TextGenerator, Translator
from jaxseq.pipelines.finished_runs import read_finished_run
from jaxseq.training import CheckpointWarning, TrainingError
from tests.experiments.small_runs import small_language_model, small_translation, write_book

PROMPT = "the quick"
LONGEST = 4000
"""Characters of an error message."""


class Subject(NamedTuple):
    """A run folder, and the ways to read it, each a function of the folder that returns plain values."""

    folder: Path
    readings: dict[str, Callable[[Path], Any]]
    expected: dict[str, list[Any]]
    """By reading: what it gives, of the newest checkpoint and of the earlier ones."""


@partial(jax.jit, static_argnums=0)
def forward(model, params, carry, tokens):
    return model.apply({"params": params}, carry, tokens)[1]


def generated(folder: Path) -> Any:
    """The logits of a fixed text, and the text of the largest ones."""
    loaded = pipelines.load_run(folder, TextGenerator)
    generator, tokens = loaded.pipeline, np.asarray([loaded.pipeline.encode(PROMPT)], np.int32)
    carry = generator.model.initial_carry((1,), generator.attention_lookback)
    logits = np.asarray(forward(generator.model, loaded.params, carry, tokens))
    return logits.tobytes(), generator.vocabulary.decode(logits[0].argmax(-1).tolist()), loaded.step


def translated(folder: Path) -> Any:
    """The translation of a fixed text, and the weights of its alignment."""
    loaded = pipelines.load_run(folder, Translator)
    found = loaded.pipeline(loaded.params, ["abca"])
    alignments = loaded.pipeline.alignments(loaded.params, [("abca", "acba")])
    return found, [np.asarray(a.weights).tobytes() for a in alignments], loaded.step


def compared(kind: type, folder: Path) -> Any:
    """What a comparison of finished runs reads."""
    run = read_finished_run(folder, kind)
    return json.dumps([run.config, run.environment, run.results], sort_keys=True)


def subject(folder: Path, readings: dict[str, Callable[[Path], Any]], scratch: Path) -> Subject:
    """Read the whole folder, and again without its newest checkpoints."""
    expected: dict[str, list[Any]] = {name: [] for name in readings}
    copy = scratch / "fewer"
    shutil.copytree(folder, copy)
    for newest in sorted((copy / "checkpoints").iterdir(), reverse=True):
        for name, read in readings.items():
            expected[name].append(read(copy))
        shutil.rmtree(newest)
    shutil.rmtree(copy)
    return Subject(folder, readings, expected)


@contextlib.contextmanager
def only_named_errors(names: set[str], told: str, seconds: float = 20) -> Iterator[None]:
    """Errors of the permitted kinds in the block must name a file or field of ``names``; others pass through."""
    try:
        with bounded(seconds):
            yield
    except (TrainingError, ValueError, OSError) as error:
        message = str(error)
        assert any(name in message for name in names), f"{told}: {type(error).__name__}: {message[:500]}"
        assert len(message) < LONGEST, f"{told}: {len(message)} characters: {message[:200]}"


def names_of(path: Path, folder: Path) -> set[str]:
    """What a message about this path contains: its name, a field of it, or the checkpoint that it is in."""
    parts = path.relative_to(folder).parts
    return {parts[-1], f"{path.stem}."} | ({parts[1], "has no checkpoint"} if len(parts) > 1 else set())


def check_readings(whole: Subject, folder: Path, names: set[str], told: str) -> set[str]:
    """Each reading gives what the whole folder gives, or a named error; returns the readings that raised one."""
    refused = set(whole.readings)
    for name, read in whole.readings.items():
        with warnings.catch_warnings(record=True) as caught, only_named_errors(names, f"{told}: {name}"):
            warnings.simplefilter("always")
            found = read(folder)
            refused.discard(name)
            assert {w.category for w in caught} <= {CheckpointWarning}, (told, [str(w.message) for w in caught])
            newest, *earlier = whole.expected[name]
            allowed = [newest, *earlier] if caught else [newest]
            assert found in allowed, f"{told}: {name} silently gave something else"
            for warning in caught:
                assert len(str(warning.message)) < LONGEST and "\n" not in str(warning.message)
    return refused


def damaged(whole: Subject, path: Path, damage: Damage, scratch: Path) -> Path:
    """A copy of the folder, in which one file or folder is damaged."""
    folder = scratch / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    damage(folder / path.relative_to(whole.folder))
    return folder


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folders_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_dir())


def check_damages(whole: Subject, cases: Iterator[tuple[Path, str, Damage]], scratch: Path) -> dict[str, set[str]]:
    """Check the readings after each damage; returns which were refused, by path and damage. All failures are told."""
    found, failures = {}, []
    for path, name, damage in cases:
        told = f"{path.relative_to(whole.folder)}: {name}"
        folder = damaged(whole, path, damage, scratch)
        try:
            found[told] = check_readings(whole, folder, names_of(path, whole.folder), told)
        except (Exception, TooSlowError) as error:
            failures.append(f"{told}: {type(error).__name__}: {str(error)[:400]}")
    assert not failures, f"{len(failures)} of {len(found) + len(failures)}:\n" + "\n".join(failures)
    return found


# ---------------------------------------------------------------- quick: a run as training leaves it, without training


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Subject:
    """A run folder of a small model with two checkpoints and results, made without a training step."""
    scratch = tmp_path_factory.mktemp("untrained")
    config = small_language_model(scratch / "run", write_book(scratch))
    vocabulary = data.fit_vocabulary(config.tokens, language_model.read(config).train)
    generator = TextGenerator(config.model, vocabulary, attention_lookback=config.length - 1)
    optimizer = training.make_optimizer(config.optimizer, 6)
    inputs = generator.model.initial_carry((1,)), np.zeros((1, 1), np.int32)
    params = jax.jit(generator.model.init)(jax.random.key(0), *inputs)["params"]
    with training.Run.open(config.run, config, fingerprint="text") as run:
        generator.save(run)
        checkpoints = training.Checkpoints(run.checkpoints, provenance=run.provenance)
        for step in (1, 2):
            params = jax.tree.map(lambda leaf: leaf * np.float32(1.5), params)
            checkpoints.save(step, training.create_state(params, optimizer, key=jax.random.key(1)))
        checkpoints.close()
        run.write("parameters.json", [])
        run.write_results({"bits_per_character": 1.5, "steps": 2})
    readings = {"load_run": generated, "read_finished_run": partial(compared, language_model.Config)}
    return subject(config.run, readings, scratch)


def test_one_damage_of_each_file_gives_the_same_or_a_named_error(untrained, tmp_path):
    damages, older = itertools.cycle(OF_FILES.items()), checkpoints_of(untrained.folder)[0]
    files = [file for file in files_of(untrained.folder) if older not in file.parents]
    check_damages(untrained, ((file, *next(damages)) for file in files), tmp_path)


@pytest.mark.parametrize(
    ("name", "reading"),
    [("config.json", "load_run"), ("text_generator.json", "load_run"), ("results.json", "read_finished_run")],
)
def test_no_damage_of_a_json_file_is_passed_over(untrained, tmp_path, name, reading):
    whole = untrained._replace(readings={reading: untrained.readings[reading]})
    file = untrained.folder / name
    found = check_damages(whole, ((file, *damage) for damage in OF_FILES.items()), tmp_path)
    assert all(found.values()), [told for told, refused in found.items() if not refused]


EDITS: dict[str, Callable[[dict], None]] = {
    "precision": lambda model: model.update(precision="bfloat16"),
    "core_options": lambda model: model.update(core_options=["activation=relu"]),
    "dropout": lambda model: model.update(dropout=0.2),
}


@pytest.mark.parametrize("field", EDITS)
def test_a_consistent_edit_of_the_model_is_refused_by_name(untrained, tmp_path, field):
    folder = damaged(untrained, untrained.folder, lambda folder: None, tmp_path)
    for file in ("config.json", "text_generator.json"):
        edited(folder / file, lambda value: EDITS[field](value["model"]))
    named = {field, "config.json", "text_generator.json"}
    assert check_readings(untrained, folder, named, field) == set(untrained.readings)


@pytest.mark.parametrize(("old", "new"), [("ef", "fe"), ("GH", "GI")])
def test_another_character_in_the_vocabulary_is_refused(untrained, tmp_path, old, new):
    def changed(file: Path) -> None:
        text = file.read_text()
        assert text.count(old) == 1
        file.write_text(text.replace(old, new))

    folder = damaged(untrained, untrained.folder / "vocabulary.json", changed, tmp_path)
    assert "load_run" in check_readings(untrained, folder, {"vocabulary.json"}, f"{old} -> {new}")


# ---------------------------------------------------------------- long: trained runs, every file and damage, resuming


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Subject, language_model.Config]:
    """A finished run of a recurrent language model, with three checkpoints."""
    scratch = tmp_path_factory.mktemp("trained")
    config = small_language_model(scratch / "run", write_book(scratch))
    with silent():
        language_model.main(config)
    readings = {"load_run": generated, "read_finished_run": partial(compared, language_model.Config)}
    return subject(config.run, readings, scratch), config


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> tuple[Subject, translation.Config]:
    """A finished run of an attention translator."""
    scratch = tmp_path_factory.mktemp("translator")
    task = Reversal(max_string_length=4, length_extrapolation=2)
    config = small_translation(scratch / "run", task=task, model=AttentionTranslator(), buckets=1, samples=0)
    with silent():
        translation.main(config)
    readings = {"load_run": translated, "read_finished_run": partial(compared, translation.Config)}
    return subject(config.run, readings, scratch), config


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """A compilation cache for the runs that this file resumes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSEQ_COMPILATION_CACHE", str(tmp_path_factory.mktemp("xla")))
        yield
    jax.config.update("jax_compilation_cache_dir", None)


@contextlib.contextmanager
def silent() -> Iterator[io.StringIO]:
    with contextlib.redirect_stdout(io.StringIO()) as output, unoptimized():
        yield output


def checkpoints_of(folder: Path) -> list[Path]:
    """The folders of the checkpoints, oldest first."""
    return sorted((folder / "checkpoints").iterdir())


def every_case(folder: Path) -> Iterator[tuple[Path, str, Damage]]:
    """Every damage of every file and folder; of older checkpoints, which are not read, one of each."""
    older, some = checkpoints_of(folder)[:-1], itertools.cycle(OF_FILES.items())
    for file in files_of(folder):
        if any(checkpoint in file.parents for checkpoint in older):
            yield (file, *next(some))
        else:
            yield from ((file, *damage) for damage in (OF_FILES | FLIPS | {"blanks": spaced}).items())
    for path in folders_of(folder):
        # Without its newest checkpoint a folder is as it was before that one was saved.
        yield from ((path, *damage) for damage in OF_FOLDERS.items() if damage[0] != "deleted")


@pytest.mark.slow
def test_every_damage_of_every_file_of_a_language_model_gives_the_same_or_a_named_error(trained, tmp_path):
    found = check_damages(trained[0], every_case(trained[0].folder), tmp_path)
    assert len(found) > 400


@pytest.mark.slow
def test_every_damage_of_every_file_of_a_translator_gives_the_same_or_a_named_error(translator, tmp_path):
    found = check_damages(translator[0], every_case(translator[0].folder), tmp_path)
    assert len(found) > 400


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained", "translator"])
def test_two_json_files_swapped_are_refused_by_name(request, tmp_path, kind):
    whole, _ = request.getfixturevalue(kind)
    names = sorted(file.name for file in whole.folder.glob("*.json"))
    manifests = [
        str(path.relative_to(whole.folder)) for path in sorted(whole.folder.glob("checkpoints/*/manifest.json"))
    ]
    for one, two in itertools.combinations([*names, *manifests], 2):
        folder = damaged(whole, whole.folder, lambda folder: swapped(folder / one, folder / two), tmp_path)  # noqa: B023
        named = names_of(folder / one, folder) | names_of(folder / two, folder)
        check_readings(whole, folder, named, f"{one} and {two} swapped")


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if not name.endswith("seconds")}


def check_resuming(
    main: Callable, config: Any, folder: Path, expected: dict[str, Any], names: set[str], told: str
) -> bool:
    """The same command gives the same results, or a named error; returns whether it gave results."""
    with warnings.catch_warnings(record=True) as caught, silent(), only_named_errors(names, f"resuming, {told}", 120):
        warnings.simplefilter("always")
        found = main(dataclasses.replace(config, run=folder))
        assert {w.category for w in caught} <= {CheckpointWarning}, (told, [str(w.message) for w in caught])
        assert without_times(found) == without_times(expected), told
        assert without_times(json.loads((folder / "results.json").read_text())) == without_times(expected), told
        return True
    return False


def resumed_cases(folder: Path) -> Iterator[tuple[Path, str, Damage]]:
    """Every damage of the files that a run reads again, and some of the others."""
    newest = checkpoints_of(folder)[-1]
    read = [path for path in files_of(folder) if path.parent in (folder, newest) and path.suffix != ".html"]
    for file in read:
        yield from ((file, *damage) for damage in (OF_FILES | dict([*FLIPS.items()][2:4])).items())
    others = [
        file
        for file in files_of(folder)
        if file not in read and (newest in file.parents or file.suffix in (".png", ".html"))
    ]
    damages = itertools.cycle(OF_FILES.items())
    yield from ((file, *next(damages)) for file in others for _ in range(2))
    for path in folders_of(folder):
        yield from ((path, *damage) for damage in OF_FOLDERS.items() if newest not in path.parents)


@cache
def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "main"), [("trained", language_model.main), ("translator", translation.main)])
def test_resuming_a_damaged_run_gives_the_same_or_a_named_error(request, tmp_path, kind, main):
    whole, config = request.getfixturevalue(kind)
    gave, failures = 0, []
    for path, name, damage in resumed_cases(whole.folder):
        told = f"{path.relative_to(whole.folder)}: {name}"
        folder = damaged(whole, path, damage, tmp_path)
        names = names_of(path, whole.folder)
        try:
            gave += check_resuming(main, config, folder, results_of(whole.folder), names, told)
        except (Exception, TooSlowError) as error:
            failures.append(f"{told}: {type(error).__name__}: {str(error)[:400]}")
    assert not failures, f"{len(failures)} failures:\n" + "\n".join(failures)
    assert gave > 50
