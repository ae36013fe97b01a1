"""The code blocks of docs/decoding.md run, one after another."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "decoding.md"


@pytest.mark.full
def test_the_code_of_the_decoding_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    assert (tmp_path / "tree.png").exists()
    error = names["again"] - names["best"].log_probabilities
    assert float(abs(error).max()) < 1e-5
