"""The programs that are measured, ours and the baselines, and how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qx_supervisor import local

COMMON = """
import gc, json, os, subprocess, sys, time
from qiskit import QuantumCircuit
from qx_supervisor.local.client import connect
pid, port = int(sys.argv[1]), int(sys.argv[2])
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
circuit.measure_all()
service = connect(port, "local-key")

def official(isa=None):
    from qiskit.transpiler import generate_preset_pass_manager
    from qiskit_ibm_runtime.executor_sampler import Sampler
    backend = service.backend("ibm_brisbane")
    if isa is None:
        isa = generate_preset_pass_manager(1, backend).run(circuit)
    return Sampler(backend).run([isa])

def make_isa():
    made = QuantumCircuit(1)
    made.x(0)
    made.measure_all()
    return made
"""


class Program:
    """A program that runs.

    Args:
        process: Its process.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> list[str]:
        """The words of its next line.

        Raises:
            RuntimeError: It ended without one.
        """
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        if not words:
            raise RuntimeError(f"the program ended early, with {self.process.wait()}")
        return words

    def tell(self, word: object = "") -> None:
        """Let it go on: it waits for a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()


@contextmanager
def started(
    ibm: local.Service, code: str, folder: Path, *words: object, variables: dict[str, str] | None = None
) -> Iterator[Program]:
    """Run a program on the embedded service; it is killed at the end of the block.

    Args:
        ibm: The service.
        code: The program, after `COMMON`.
        folder: Where it is written, and its ledger kept.
        *words: More arguments.
        variables: More of its environment.
    """
    script = folder / "driver.py"
    script.write_text(COMMON + code)
    with subprocess.Popen(
        [sys.executable, str(script), str(ibm.pid), str(ibm.port), *map(str, words)],
        env=environment(folder / "state") | (variables or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def environment(state: Path | None = None) -> dict[str, str]:
    """Variables for a program: with bytecode kept, as users have it, and a ledger of its own."""
    made = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return made if state is None else {**made, "QX_STATE_DIR": str(state)}


def tick() -> None:
    """Show that it goes on."""
    print(".", end="", file=sys.stderr, flush=True)
