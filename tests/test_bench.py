"""The short form of `scripts/bench`: every kind of measure, once or twice, and the table that comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench.py"


def test_a_short_bench(tmp_path):
    """It is checked that each figure is measured; how good they are depends on the machine, and is not."""
    figures = tmp_path / "figures.json"
    chosen = ["kill", "run", "later", "import", "flight", "death", "ledger"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tries", "2", "--only", *chosen, "--json", str(figures)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measures = {each["name"]: each for each in json.loads(figures.read_text())}
    for each in measures.values():
        assert all(values for values in each["values"].values()), each
        assert f"| {each['name']} | qx_supervisor |" in done.stdout
    kill = measures["kill -9 → cancel request"]["values"]
    assert {whose: len(values) for whose, values in kill.items()} == {"bare": 1, "textbook": 1, "qx_supervisor": 2}
    assert all(value > 0 for values in kill.values() for value in values)
    assert any("0 were more than one for a job" in note for each in measures.values() for note in each["notes"])


def test_what_there_is_not(tmp_path):
    asked = [sys.executable, str(SCRIPT), "--only", "lunch"]
    done = subprocess.run(asked, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "there is no lunch; there are kill, terminate" in done.stderr
