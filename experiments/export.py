"""Export a trained model to a folder that needs no jaxseq: weights, architecture, programs.

    python experiments/export.py --run runs/mine --out exported
    python experiments/export.py --run runs/mine --out exported --step best --platforms cpu cuda

The folder holds model.safetensors (the parameters by name, for torch and NumPy too), architecture.json (the model's
config, its vocabulary, the programs with their arguments and results) and programs of jax.export: start, step and
forward, or detect. The batch axis is free, and the axes of time where the model allows it. Every program is read again
and compared with the model. docs/export.md shows how to use the folder.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxseq import pipelines, training


@dataclass(frozen=True)
class Config:
    """The run, the checkpoint, and the folder to write."""

    run: Path
    """A run folder of any experiment that trains a model."""
    out: Path
    """The folder to write; it must not exist, or be empty."""
    length: int = 128
    """The length of the time axes of a model that does not allow free ones."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()
    """The platforms of the programs; that of this process if not given."""
    access: tyro.conf.OmitArgPrefixes[pipelines.RunAccess] = pipelines.RunAccess()

    def __post_init__(self) -> None:
        training.check_numbers(self)
        if self.length < 1:
            raise ValueError(f"length must be at least 1, not {self.length}")


def main(config: Config) -> dict[str, Any]:
    """Load, export, print; returns the contents of architecture.json."""
    trained = pipelines.load(config.run, **dataclasses.asdict(config.access))
    made = pipelines.export_model(trained, config.out, length=config.length, platforms=config.platforms)
    size = sum(file.stat().st_size for file in config.out.iterdir())
    print(
        f"{made['kind']} of step {made['step']}: {len(made['parameters'])} arrays, {size / 1e6:.1f} MB in {config.out}"
    )
    for name, program in made["programs"].items():
        print(f"  {program['file']}: {name}({', '.join(program['arguments'])}) -> {', '.join(program['results'])}")
    print(f"free axes: {', '.join(made['free_axes'])} (b: batch, t: time, s: time of the source)")
    if made["time_is_fixed_because"]:
        print(f"the time axes have the length {config.length}: {made['time_is_fixed_because']}")
    return made


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
