"""Smoke runs on a mesh of 2 host devices against one device; run by test_mesh_experiments.py in its own process."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments import captioning, detection, generate, language_model, translate, translation
from jaxseq import decoding, pipelines, training
from jaxseq.distribution import Placement, collectives
from jaxseq.models.configs import TransformerTranslator
from jaxseq.pipelines import Reversal
from tests.experiments.small_runs import (
    small_captioning,
    small_detection,
    small_language_model,
    small_translation,
    write_book,
)

TOLERANCE = 1e-4


def losses(run: Path) -> dict[str, float]:
    """The training and evaluation losses of a run, by step."""
    rows = training.read_json_lines(run / "metrics.jsonl")
    return {f"{row['step']} {name}": row[name] for row in rows for name in row if name.split("/")[-1] == "loss"}


def check_training(config: Any, main: Callable, mesh: str) -> None:
    """The losses on a mesh are those of one device."""
    main(config)
    placed = dataclasses.replace(config, run=config.run.with_name(f"{config.run.name}-{mesh}"), mesh=mesh)
    main(placed)
    wanted, found = losses(config.run), losses(placed.run)
    assert wanted and wanted.keys() == found.keys(), (wanted, found)
    for name, value in wanted.items():
        assert math.isclose(value, found[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE), (mesh, name, value, found[name])


def check_translation(folder: Path) -> None:
    """A transformer with scheduled sampling; then the same translations on a mesh and on one device."""
    task = Reversal(max_string_length=4, length_extrapolation=2)
    options = {"model": TransformerTranslator(), "scheduled_sampling": 0.5, "buckets": 1}
    config = small_translation(folder / "translation", task=task, **options)
    check_training(config, translation.main, "fsdp=2")
    for beams in (1, 2):
        asked = translate.Config(config.run, text=("abc", "dcba", ""), beams=beams, max_length=8)
        assert translate.main(asked) == translate.main(dataclasses.replace(asked, mesh="data=2"))


def check_generation(folder: Path) -> None:
    """The same texts on a mesh and on one device: greedy, samples of one prompt, beams, a batch of odd size."""
    config = small_language_model(folder / "language", write_book(folder))
    language_model.main(config)
    asked = generate.Config(config.run, prompt=("the ", "quick "), max_length=12)
    for changes in (
        {},
        {"samples": 4, "prompt": ("the ",), "repetition_penalty": 1.2},
        {"samples": 3, "seed": 1, "top_k": 4},
        {"beams": 2, "results": 2},
        {"prompt": ("the ", "quick ", "fox "), "complete": True},
    ):
        one = dataclasses.replace(asked, **changes)
        wanted, found = generate.main(one), generate.main(dataclasses.replace(one, mesh="data=2"))
        assert [result.tokens for result in wanted] == [result.tokens for result in found], changes
        assert [result.text for result in wanted] == [result.text for result in found], changes
    check_collectives(config.run)


def check_collectives(run: Path) -> None:
    """In a loop of decoding, the devices exchange nothing but whether all rows are done."""
    placement = Placement.on("data=2")
    loaded = pipelines.load_run(run, pipelines.TextGenerator)
    generator, params = loaded.pipeline.on(placement), placement.replicate(loaded.params)
    step, common = decoding.step_of(generator.forward(params)), {"max_length": 5, "end_token": 0}
    keys, options = jax.random.key(0), decoding.SamplingOptions(top_k=4, top_p=0.9)
    methods: list[Callable] = [
        lambda rows: decoding.greedy(step, *rows, **common),
        lambda rows: decoding.sample(step, *rows, options, key=keys, **common),
        lambda rows: decoding.beam_search(step, *rows, decoding.BeamOptions(2, 1), **common),
    ]
    with placement.ambient():
        rows = generator.prefill(params, ("the ", "quick "), 5)
        for method in methods:
            compiled = jax.jit(method).lower(rows).compile()
            found = {(row.kind, row.shapes) for row in collectives(compiled, placement.mesh) if row.in_loop}
            assert found == {("all-reduce", "pred[]")}, found


def main(folder: Path, *names: str) -> None:
    """Run the checks of these names."""
    assert jax.device_count() == 2, jax.devices()
    checks: dict[str, Callable] = {
        "translation": check_translation,
        "generation": check_generation,
        "captioning": lambda folder: check_training(
            small_captioning(folder / "captioning", decoder="attention", samples=0, compared_beams=1),
            captioning.main,
            "data=2",
        ),
        "detection": lambda folder: check_training(
            small_detection(folder / "detection", samples=0), detection.main, "data=2"
        ),
    }
    for name in names or checks:
        checks[name](folder)
        print(f"checked: {name}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
