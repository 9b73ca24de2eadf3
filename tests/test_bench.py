"""The short form of `scripts/bench`: every kind of measure, once or twice, and the table that comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench.py"


def bench(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_a_short_bench(tmp_path):
    """It is checked that each figure is measured; how good they are depends on the machine, and is not."""
    figures = tmp_path / "figures.json"
    chosen = ["kill", "memory", "core", "stuck", "run", "vqe", "later", "start", "import", "flight", "death", "ledger"]
    shown = bench("--tries", "2", "--only", *chosen, "--json", str(figures))
    measures = {each["name"]: each for each in json.loads(figures.read_text())}
    for each in measures.values():
        assert all(values for values in each["values"].values()), each
        assert f"| {each['name']} | qx_supervisor |" in shown
    kill = measures["kill -9 → cancel request"]["values"]
    assert {whose: len(values) for whose, values in kill.items()} == {"bare": 1, "textbook": 1, "qx_supervisor": 2}
    assert all(value > 0 for values in kill.values() for value in values)
    assert any("0 were more than one for a job" in note for each in measures.values() for note in each["notes"])


def postgres_is_missing() -> bool:
    return not list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


@pytest.mark.skipif(postgres_is_missing(), reason="PostgreSQL is not installed (apt-get install postgresql)")
@pytest.mark.long
def test_a_short_bench_of_the_shared_ledger(tmp_path):
    figures = tmp_path / "figures.json"
    shown = bench("--tries", "2", "--only", "arming", "renewals", "reapers", "--json", str(figures))
    measures = {each["name"]: each for each in json.loads(figures.read_text())}
    for each in measures.values():
        assert all(value > 0 for values in each["values"].values() for value in values), each
        assert f"| {each['name']} | qx_supervisor |" in shown
    assert {name.partition(",")[0] for name in measures} == {
        "announcing a run",
        "renewals per second",
        "one renewal",
        "20 expired leases reaped",
        "claimed and recorded in the database alone",
    }
    assert "0 leases twice" in measures["20 expired leases reaped, by 2 reapers"]["verdict"]
    assert any("0 leases had run out" in note for each in measures.values() for note in each["notes"])


def test_what_there_is_not(tmp_path):
    asked = [sys.executable, str(SCRIPT), "--only", "lunch"]
    done = subprocess.run(asked, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "there is no lunch; there are kill, " in done.stderr
