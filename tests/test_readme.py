"""The README's code runs as it is written."""

import re
from pathlib import Path

import numpy as np

from experiments.language_model import main
from tests.experiments.small_runs import small_language_model, write_book

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_example_holds():
    exec(compile(BLOCKS[0], "README.md", "exec"), {})


def test_the_cell_of_ones_own_trains_as_pasted(tmp_path, capsys):
    file = tmp_path / "my_cell.py"
    file.write_text(BLOCKS[1], encoding="utf-8")
    results = main(small_language_model(tmp_path / "run", write_book(tmp_path), core=f"{file}:UGRNN"))
    assert "UGRNN: the contract of cores holds" in capsys.readouterr().out
    assert np.isfinite(results["bits_per_character"])


def test_the_decoding_example_holds():
    exec(compile(BLOCKS[2], "README.md", "exec"), {})


def test_the_translation_example_holds():
    exec(compile(BLOCKS[3], "README.md", "exec"), {})


def test_the_table_of_cores_is_complete():
    from jaxseq.cores import CORES

    assert all(f"| `{name}` |" in README for name in CORES)
