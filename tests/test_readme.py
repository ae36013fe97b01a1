"""The README's code runs as it is written."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.language_model import Config, main
from jaxseq.cores import CORES
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.training import TrainConfig

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
CELL = next(block for block in BLOCKS if "class UGRNN" in block)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block is not CELL], ids=lambda block: block[-40:])
def test_every_example_runs(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_cell_of_ones_own_trains_as_pasted(tmp_path):
    file = tmp_path / "my_cell.py"
    file.write_text(CELL, encoding="utf-8")
    train = TrainConfig(steps=30, truncation="carry")
    model = LanguageModelConfig(core=f"{file}:UGRNN")
    results = main(Config(run=tmp_path / "run", model=model, smoke=True, train=train))
    assert np.isfinite(results["bits_per_character"])


def test_the_table_of_cores_is_complete():
    assert all(f"| `{name}` |" in README for name in CORES)
