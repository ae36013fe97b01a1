"""The notebook docs/tour.ipynb: its cells run in order, and its outputs are those of a run without errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CELLS = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_outputs_are_stored_and_name_no_machine():
    kinds = [output["output_type"] for cell in CODE for output in cell["outputs"]]
    assert "error" not in kinds and kinds.count("display_data") == 3
    assert not re.search(r"/(home|root|tmp|Users|work)/", json.dumps([cell["outputs"] for cell in CODE]))
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))


@pytest.mark.full
def test_the_cells_run_in_order(tmp_path):
    pytest.importorskip("matplotlib", reason="the tour draws figures: pip install 'jaxseq[plots]'")
    script = tmp_path / "tour.py"
    script.write_text("\n".join("".join(cell["source"]) + "\n" for cell in CODE), encoding="utf-8")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"TOUR_STEPS": "16", "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    words = [sys.executable, "-W", "error", "-W", "ignore:FigureCanvasAgg", str(script)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (tmp_path / "exported" / "architecture.json").is_file()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"hybrid", "ugrnn"}
