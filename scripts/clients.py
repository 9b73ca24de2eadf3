"""Runs the short tests with several versions of Qiskit's client, and prints what came of each run, as a table.

Each version has an environment of its own, with the Python and the Qiskit that are named beside it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import tempfile
from pathlib import Path

import steady

CHECKOUT = Path(__file__).resolve().parent.parent

USUAL = ("0.41.0:3.11:1.4.6", "0.45.1:3.12", "0.51.0:3.13")

LOOK = """
import importlib.metadata, platform
print(platform.python_version(), importlib.metadata.version("qiskit"))
"""


def versions_in(folder: Path) -> tuple[str, str]:
    """The Python and the Qiskit of an environment; "–" for each if there is none."""
    try:
        done = subprocess.run([folder / "bin/python", "-c", LOOK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "–", "–"
    python, qiskit = done.stdout.split()
    return python, qiskit


def main() -> None:
    """Run, and print a line after each run."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="scripts/clients", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="CLIENT:PYTHON[:QISKIT]", help=f"by default {' '.join(USUAL)}")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEST", help="these tests, and not all short ones")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qx-clients-"))
    print(f"{datetime.date.today()}, {os.cpu_count()} cores; output in {folder}\n")
    print(f"| client | Python | Qiskit | passed | failed | skipped | wall time | CPU time |\n|{'---|' * 8}")
    for number, each in enumerate(asked.runs or USUAL):
        client, _, wanted = each.partition(":")
        python, _, qiskit = wanted.partition(":")
        os.environ["PYTHON"], os.environ["QX_TEST_QISKIT"] = python, qiskit
        rest = steady.run(["--client", client, *asked.only], folder / f"run{number}-{client}.txt")
        has = " | ".join(versions_in(CHECKOUT / f".venv-client-{client}"))
        print(f"| {client} | {has} | {rest}", flush=True)


if __name__ == "__main__":
    main()
