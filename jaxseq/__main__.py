"""Run the experiments of an installed jaxseq.

    python -m jaxseq train language-model --run runs/demo
    python -m jaxseq train translation model:transformer --run runs/dates
    python -m jaxseq generate --run runs/demo --prompt "The "
    python -m jaxseq translate --run runs/dates --text "March 3, 2031"
    python -m jaxseq train captioning --run runs/scenes
    python -m jaxseq caption --run runs/scenes --images photograph.jpg
    python -m jaxseq train detection --model fast_rcnn --run runs/fast
    python -m jaxseq detect --run runs/fast --images photograph.jpg
    python -m jaxseq export --run runs/demo --out exported
    python -m jaxseq analyze errata --run runs/errata
    python -m jaxseq doctor
    python -m jaxseq ablation --vary features=128 --run runs/ablation
    python -m jaxseq compare runs/gru runs/lstm --out runs/comparison

The options behind a command are those of its script, and COMMAND --help lists them. The scripts are meant to be read
and copied; python -m jaxseq path prints where they are.
"""

import runpy
import sys
from pathlib import Path
from typing import NoReturn

from jaxseq.terminal import printable, standard_outputs

COMMANDS = {
    ("train", "language-model"): "train a language model on text",
    ("train", "translation"): "train a translator on pairs of texts",
    ("train", "captioning"): "train a captioner of images",
    ("train", "detection"): "train a detector of objects in images",
    ("generate",): "generate text with a trained language model",
    ("translate",): "translate texts with a trained translator",
    ("caption",): "caption images with a trained captioner",
    ("detect",): "detect objects in images with a trained detector",
    ("export",): "export a trained model: safetensors, JSON, programs of jax.export",
    ("analyze", "scaled-dot"): "measure why attention scales its dot products",
    ("analyze", "errata"): "compute the number behind each entry of docs/errata.md",
    ("analyze", "truncation"): "measure the bias and the final loss of truncated back-propagation",
    ("analyze", "gradient-flow"): "measure how gradients flow through recurrence and attention",
    ("analyze", "complexity"): "measure the complexity of attention, recurrence and convolution against theory",
    ("doctor",): "check this machine and installation, with advice",
    ("ablation",): "change one field of an experiment at a time, or a grid of them, and compare over seeds",
    ("compare",): "compare run folders: curves, tables, the fields that differ",
    ("path",): "print the folder of the scripts",
}
GROUPS = ("train", "analyze")
"""First words of commands of two words."""
NAME = "python -m jaxseq"


def experiments_folder() -> Path:
    """The folder of the experiments: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def main() -> None:
    """Run the command of ``sys.argv``."""
    words = [word.replace("_", "-") if not word.startswith("-") else word for word in sys.argv[1:3]]
    if not words or words[0] in ("-h", "--help") or (words[0] in GROUPS and words[1:] in ([], ["-h"], ["--help"])):
        with standard_outputs():
            print(usage())
        return
    command = next((command for command in COMMANDS if tuple(words[: len(command)]) == command), None)
    if command is None:
        fail(words)
    if command == ("path",):
        if sys.argv[2:]:
            sys.exit(f"error: {NAME} path takes no options, not {printable(' '.join(sys.argv[2:]))}")
        with standard_outputs():
            print(experiments_folder())
        return
    if command == ("doctor",):
        sys.argv = sys.argv[:1] + sys.argv[2:]
        runpy.run_module("jaxseq.doctor", run_name="__main__")
        return
    script = experiments_folder() / f"{command[-1].replace('-', '_')}.py"
    sys.argv = [str(script), *sys.argv[1 + len(command) :]]
    runpy.run_path(str(script), run_name="__main__")


def fail(words: list[str]) -> NoReturn:
    """Exit with a line that names the unknown command and the known ones."""
    asked = " ".join(words[:2] if words[0] in GROUPS else words[:1])
    sys.exit(f"error: unknown command {asked!r}; known: {', '.join(' '.join(command) for command in COMMANDS)}")


def usage() -> str:
    """The help text."""
    width = max(len(" ".join(command)) for command in COMMANDS) + 3
    lines = [f"  {' '.join(command):{width}}{help_text}" for command, help_text in COMMANDS.items()]
    return "\n".join([f"usage: {NAME} COMMAND [OPTIONS]\n", *(__doc__ or "").splitlines(), "", "commands:", *lines])


if __name__ == "__main__":
    main()
