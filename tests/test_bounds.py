"""What a job may take of the machine that the embedded service runs on, and that it holds nobody else up meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from qiskit import transpile
from testkit.client import Sampler
from testkit.drivers import Driver
from testkit.processes import DEADLINE, until, wait_for_end

from qx_supervisor import JobFailed, SubmitError, local, run, submit
from qx_supervisor.local.bounds import GIB, Bounds, Demand

EASY = Demand(executions=100, qubits=2, memory=1.0, operations=10, sampling=200, method="matrix_product_state")


def ladder(width: int, layers: int = 1) -> Any:
    """A circuit whose qubits are all entangled, the more with each layer."""
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(width)
    for layer in range(layers):
        for qubit in range(width):
            circuit.ry(0.3 + layer + qubit, qubit)
        for first in range(layer % 2, width - 1, 2):
            circuit.cz(first, first + 1)
    circuit.measure_all()
    return circuit


def demand(circuit: Any, shots: int = 100) -> Demand:
    """What a job takes, by what the deprecated sampler would submit."""
    import json

    encoder = pytest.importorskip("qiskit_ibm_runtime.json").RuntimeEncoder  # the embedded service's client has it

    from qx_supervisor.local.demand import demand_of

    return demand_of("sampler", json.loads(json.dumps({"pubs": [(circuit, None, shots)]}, cls=encoder)))


@pytest.mark.parametrize(
    "needed, said",
    [
        ({}, ""),
        ({"executions": 1_000_001}, "runs at most 1,000,000 shots a job, and this one needs 1,000,001; "),
        ({"qubits": 25}, "simulates at most 24 qubits entangled with one another, and this one needs 25; "),
        ({"memory": 3.21 * GIB}, "gives at most 2 GiB to a job, and this one needs up to 3.2 GiB; "),
    ],
)
def test_a_refusal_names_the_bound_and_how_to_raise_it(needed: dict[str, Any], said: str) -> None:
    demand = Demand(**{**vars(EASY), **needed})
    refusal = Bounds().refusal(demand)
    assert said in refusal
    assert bool(refusal) == bool(needed)
    if needed:
        [option] = refusal.partition("qx-supervisor local start --max-")[2:]
        name, amount = option.split()
        raised = {name: int(float(amount) * (GIB if name == "memory" else 1))}
        assert Bounds(**raised).refusal(demand) == ""  # doing as it says helps


@pytest.mark.parametrize("name", ["shots", "qubits", "memory"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_a_bound_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(local.ServiceError, match=f"was not started: max_{name} must be a whole number of at least 1"):
        local.start(**{f"max_{name}": value})


def test_what_counts_is_how_far_the_gates_can_entangle() -> None:
    """Not the number of qubits."""
    wide = demand(ladder(100, 2))
    assert wide.qubits <= 6
    assert wide.method == "matrix_product_state"
    assert Bounds().refusal(wide) == ""
    assert demand(ladder(20, 40)).qubits == 20
    deep = demand(ladder(60, 60))
    assert deep.qubits == 60
    assert "60" in Bounds().refusal(deep)
    assert demand(ladder(16, 20)).method == "statevector"


def test_a_body_counts_as_often_as_it_is_executed() -> None:
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(4, 1)
    with circuit.for_loop(range(10)):
        circuit.cz(0, 1)
        circuit.cz(1, 2)
        circuit.cz(2, 3)
    assert demand(circuit).qubits == 4
    assert demand(circuit).operations >= 30
    circuit.measure(0, 0)
    with circuit.while_loop((circuit.clbits[0], True)):
        circuit.cz(0, 3)
    assert demand(circuit).is_heavy  # nobody knows for how long


def test_what_takes_too_much_is_refused(ibm: local.Service, service: Any) -> None:
    """Shots with the submission, as at IBM, and so nothing is submitted; entangled qubits when the circuit is read."""
    with pytest.raises(
        SubmitError, match=r"at most 1,000,000 shots a job.* 2,000,000; .*--max-shots 2000000"
    ) as caught:
        run(ladder(2), "ibm_brisbane", service=service, shots=2_000_000, panel=None)
    assert caught.value.code == 1103
    assert ibm.jobs() == []
    with pytest.raises(JobFailed, match=r"at most 24 qubits entangled .* start --max-qubits \d\d "):
        run(ladder(40, 40), "ibm_brisbane", service=service, shots=10, panel=None)


@pytest.fixture
def small() -> Iterator[local.Service]:
    """A service whose jobs may take little."""
    with local.start(max_memory=GIB // 4, max_qubits=30) as service:
        yield service


@pytest.mark.long
def test_memory_is_bounded_whatever_was_expected(small: local.Service) -> None:
    """By an estimate beforehand, and by the kernel."""
    service = small.service()
    with pytest.raises(JobFailed, match=r"gives at most 0.25 GiB to a job.* --max-memory"):
        run(ladder(26, 40), "ibm_brisbane", service=service, shots=10, panel=None)
    with pytest.raises(JobFailed, match=r"gives at most 0.25 GiB to a job, and this one needs more.*--max-memory 0.5"):
        # Its results are larger than their estimate: each takes half a kilobyte of text.
        run([ladder(100)] * 40, "ibm_brisbane", service=service, shots=5_000, panel=None)
    assert run(ladder(2), "ibm_brisbane", service=service, shots=10, panel=None).counts


def simulators(ibm: local.Service) -> list[psutil.Process]:
    """The processes that simulate for a service."""
    return psutil.Process(ibm.pid).children()


LONG = ladder(22, 400)
"""It takes minutes."""


@pytest.mark.long
def test_a_long_simulation_holds_nobody_up(ibm: local.Service, service: Any, start: Callable[..., Driver]) -> None:
    """Another driver runs its job meanwhile, and a cancel ends the simulation."""
    job = submit(LONG, "ibm_brisbane", service=service, shots=100)
    [posted] = ibm.wait_for("POST", "/api/v1/jobs", answered=True)
    ibm.wait_job(posted.job_id, "Running")
    [simulator] = until(lambda: simulators(ibm), bool)
    until(simulator.nice, lambda nice: nice >= min(19, psutil.Process(ibm.pid).nice() + 10))
    driver = start("say('counted', sum(run(bell(), 'ibm_brisbane', service=service(), shots=64).counts.values()))")
    assert driver.line("counted ") == ["64"]
    answers = [entry.answered - entry.arrived for entry in ibm.journal() if entry.answered is not None]
    assert max(answers) < 5e9  # ns, on a busy machine
    assert ibm.job(posted.job_id).status == "Running"
    job.cancel()
    assert ibm.wait_job(posted.job_id).status == "Cancelled"
    wait_for_end(simulator)


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "reset"])
def test_a_simulation_ends_with_its_service(how: str) -> None:
    with local.start() as ibm:
        backend = ibm.service().backend("ibm_brisbane")
        Sampler(mode=backend).run([transpile(LONG, backend, optimization_level=0)], shots=100)
        [simulator] = until(lambda: simulators(ibm), bool)
        if how == "killed":
            os.kill(ibm.pid, signal.SIGKILL)
        else:
            ibm.reset()
        wait_for_end(simulator)


@pytest.mark.long
def test_a_long_simulation_is_exact(ibm: local.Service, service: Any) -> None:
    """A rotation and its inverse, with everything between entangled: all zeros, whatever the method."""
    from qiskit import QuantumCircuit

    there = ladder(14, 30).remove_final_measurements(inplace=False)
    circuit = QuantumCircuit(14)
    circuit.compose(there, inplace=True)
    circuit.barrier()
    circuit.compose(there.inverse(), inplace=True)
    circuit.measure_all()
    began = time.monotonic()
    counts = run(circuit, "ibm_brisbane", service=service, shots=500, panel=None, timeout=2 * DEADLINE).counts
    assert counts == {"0" * 14: 500}, time.monotonic() - began


def test_a_simulation_that_cannot_be_started_fails_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the service has no descriptor or memory left for a process, or its environment was deleted."""
    pytest.importorskip("localqpu")
    from localqpu.scenario import ScenarioState

    from qx_supervisor.local.demand import LARGE
    from qx_supervisor.local.jobs import Jobs

    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    jobs = Jobs(ScenarioState(), Bounds())
    job = jobs.submit("sampler", "ibm_brisbane", {"pubs": ["x" * (LARGE + 1)]})
    reached, failed = jobs.wait(job.job_id, {"Failed"}, DEADLINE)
    jobs.reset()
    assert reached, failed
    assert failed is not None
    assert "could not be carried out: FileNotFoundError: " in failed.reason
    assert "/nowhere/python" in failed.reason
