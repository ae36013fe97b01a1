"""The code of the README and of the page for newcomers runs as it is written."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.language_model import main
from tests.experiments.small_runs import small_language_model, write_book

ROOT = Path(__file__).resolve().parents[1]
README, NEWCOMERS = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/why-does-my-rnn-not-learn.md")
)
BLOCKS, SCRIPTS = (re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) for page in (README, NEWCOMERS))


FURTHER = re.compile(r"jaxseq\.models|import analysis|core = Stacked")
"""Examples that compile much."""


def block(word: str) -> str:
    """The only example that holds this word."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


@pytest.mark.full
def test_the_cell_of_ones_own_trains_as_pasted(tmp_path, capsys):
    file = tmp_path / "my_cell.py"
    file.write_text(block("class UGRNN"), encoding="utf-8")
    results = main(small_language_model(tmp_path / "run", write_book(tmp_path), core=f"{file}:UGRNN"))
    assert "UGRNN: the contract of cores holds" in capsys.readouterr().out
    assert np.isfinite(results["bits_per_character"])


@pytest.mark.full
def test_the_trained_model_is_loaded_as_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(small_language_model(tmp_path / "runs" / "demo", write_book(tmp_path), core="lstm"))
    exec(compile(block("jaxseq.load"), "README.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[-1].startswith("(1, 16, ")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, marks=[pytest.mark.full] if FURTHER.search(text) else [], id=f"example {number}")
        for number, text in enumerate(BLOCKS)
        if "class UGRNN" not in text and "jaxseq.load" not in text
    ],
)
def test_an_example_runs_as_pasted(text):
    exec(compile(text, "README.md", "exec"), {"__name__": "example"})


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_for_newcomers_draws_the_picture_that_follows_it(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPTS[number], "why-does-my-rnn-not-learn.md", "exec"), {"__name__": "example"})
    shown = re.findall(r"\]\(gallery/(.*?)\)", NEWCOMERS)[number]
    assert [file.name for file in tmp_path.iterdir()] == [shown] and (ROOT / "docs" / "gallery" / shown).is_file()


def test_the_table_of_cores_is_complete():
    from jaxseq.cores import CORES

    assert all(f"| `{name}` |" in README for name in CORES)
