"""Libraries that take Qiskit's primitives, with ours: each runs to its result, and is killed midway.

Each is a program, for the embedded service and with the libraries that are installed; what is not there is skipped.
PennyLane's plugin and Mitiq are installed without what they ask for beside: see `docs/primitives.md`.
"""

from __future__ import annotations

import importlib.util

import pytest
from testkit.processes import until
from testkit.watchers import wait_for_watchers

BEFORE = """
import warnings
warnings.simplefilter("ignore")  # of libraries, about each other
import numpy as np
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import Session
from qx_supervisor.primitives import Estimator, Sampler
def done(*words):
    say("result", *words)
backend = backend()
session = Session(backend)  # where states are polled more often
how = {"poll_interval": 0.1, "on_status": tell}
manager = generate_preset_pass_manager(1, backend, initial_layout=[0, 1], seed_transpiler=1)
plain = {"resilience_level": 0, "default_shots": 256}
"""

PROGRAMS = {
    "qiskit_algorithms: VQE": """
from qiskit.circuit import Parameter
from qiskit_algorithms import VQE
from qiskit_algorithms.optimizers import COBYLA
ansatz = QuantumCircuit(2)
ansatz.ry(Parameter("a"), 0)
ansatz.cx(0, 1)
isa = manager.run(ansatz)
estimator = Estimator(session, plain, **how)
vqe = VQE(estimator, isa, COBYLA(maxiter=10), initial_point=[1.0])
found = vqe.compute_minimum_eigenvalue(SparsePauliOp(["IZ", "ZZ"], [1.0, 0.1]), [SparsePauliOp("ZI")])
done(found.eigenvalue.real, found.aux_operators_evaluated[0][0])
""",
    "qiskit_algorithms: VQE with gradients": """
from qiskit.circuit import Parameter
from qiskit_algorithms import VQE
from qiskit_algorithms.gradients import ParamShiftEstimatorGradient
from qiskit_algorithms.optimizers import GradientDescent
ansatz = QuantumCircuit(1)
ansatz.rx(Parameter("a"), 0)
estimator = Estimator(session, plain, **how)
gradient = ParamShiftEstimatorGradient(estimator)
optimizer = GradientDescent(maxiter=4, learning_rate=1.0)
vqe = VQE(estimator, ansatz, optimizer, gradient=gradient, initial_point=[1.5])
done(vqe.compute_minimum_eigenvalue(SparsePauliOp("Z")).eigenvalue.real)
""",
    "qiskit_algorithms: QAOA": """
from qiskit_algorithms import QAOA
from qiskit_algorithms.optimizers import COBYLA
sampler = Sampler(session, {"default_shots": 256}, **how)
qaoa = QAOA(sampler, COBYLA(maxiter=6), reps=1, initial_point=[0.4, 0.6])
found = qaoa.compute_minimum_eigenvalue(SparsePauliOp("ZZ"))
done(*sorted(found.eigenstate))
""",
    "qiskit_machine_learning": """
from qiskit.circuit.library import z_feature_map
from qiskit_machine_learning.kernels import FidelityQuantumKernel
from qiskit_machine_learning.state_fidelities import ComputeUncompute
sampler = Sampler(session, {"default_shots": 256}, **how)
fidelity = ComputeUncompute(sampler)
kernel = FidelityQuantumKernel(feature_map=z_feature_map(2, reps=1), fidelity=fidelity, max_circuits_per_job=1)
found = kernel.evaluate([[0.0, 0.0], [0.0, 0.0], [1.5, 1.5], [0.5, 1.0]])
done(*found[0])
""",
    "qiskit_machine_learning: networks": """
from qiskit.circuit import Parameter
from qiskit_machine_learning.neural_networks import EstimatorQNN
from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
given, weight = Parameter("x"), Parameter("w")
circuit = QuantumCircuit(2)
circuit.ry(given, 0)
circuit.ry(weight, 0)
estimator = Estimator(session, plain, **how)
network = EstimatorQNN(
    circuit=circuit,
    observables=SparsePauliOp("IZ"),
    input_params=[given],
    weight_params=[weight],
    estimator=estimator,
    gradient=ParamShiftEstimatorGradient(estimator),
)
found = [network.forward([0.0], [angle])[0][0] for angle in (0.0, 1.57, 3.14)]
_, slopes = network.backward([0.0], [1.57])
done(*found, slopes[0][0][0])
""",
    "qiskit_addon_cutting": """
from qiskit_addon_cutting import generate_cutting_experiments, partition_problem, reconstruct_expectation_values
circuit = QuantumCircuit(2)
circuit.h(0)
circuit.cx(0, 1)
parts = partition_problem(circuit, "AB", SparsePauliOp("ZZ").paulis)
experiments, coefficients = generate_cutting_experiments(parts.subcircuits, parts.subobservables, num_samples=np.inf)
one = generate_preset_pass_manager(1, backend, initial_layout=[0], seed_transpiler=1)
sampler = Sampler(session, {"default_shots": 256}, **how)
results = {}
for name, circuits in experiments.items():
    results[name] = sampler.run(one.run(circuits)).result()
done(sum(reconstruct_expectation_values(results, coefficients, parts.subobservables)))
""",
    "qiskit_addon_obp": """
from qiskit.quantum_info import Statevector
from qiskit_addon_obp import backpropagate
first, last = QuantumCircuit(2), QuantumCircuit(2)
first.rx(np.pi / 3, 0)
last.cx(0, 1)
last.rx(np.pi / 2, 0)
estimator = Estimator(session, plain, **how)
errors = []
for letters in ("IZ", "ZI", "YX"):
    [observable], _, _ = backpropagate([SparsePauliOp(letters)], [last])  # this slice need not be executed
    isa = manager.run(first)
    value = estimator.run([(isa, observable.apply_layout(isa.layout))]).result()[0].data.evs
    errors.append(value - Statevector(first.compose(last)).expectation_value(SparsePauliOp(letters)).real)
done(*errors)
""",
    "pennylane_qiskit": """
import pennylane
from pennylane_qiskit import qiskit_device, qiskit_session
import functools
qiskit_device.Estimator = functools.partial(Estimator, **how)
qiskit_device.Sampler = functools.partial(Sampler, **how)
device = pennylane.device("qiskit.remote", wires=2, backend=backend, optimization_level=1)
@pennylane.qnode(device, shots=256)
def mean(angle):
    pennylane.RX(angle, wires=0)
    return pennylane.expval(pennylane.PauliZ(0)), pennylane.var(pennylane.PauliZ(0))
@pennylane.qnode(device, shots=256)
def counts(angle):
    pennylane.RX(angle, wires=0)
    return pennylane.counts(wires=[0])
with qiskit_session(device) as session:
    found = [mean(angle) for angle in (0.0, 1.57, 3.14)]
    found.append(counts(3.14159))
done(*(float(pair[0]) for pair in found[:3]), found[3]["1"])  # the embedded service's standard errors vary widely
""",
    "mitiq": """
from mitiq import zne
sampler = Sampler(session, {"default_shots": 256}, optimization_level=0, **how)
def executor(circuit):
    measured = circuit.copy()
    measured.measure_all()
    counts = sampler.run([measured]).result()[0].data.meas.get_counts()
    return counts.get("00", 0) / sum(counts.values())
circuit = QuantumCircuit(2)
for _ in range(4):
    circuit.x([0, 1])
done(zne.execute_with_zne(circuit, executor, factory=zne.inference.LinearFactory([1.0, 2.0, 3.0, 4.0])))
""",
}

RESULTS = {
    "qiskit_algorithms: VQE": [-0.9, -1.0],
    "qiskit_algorithms: VQE with gradients": [-1.0],
    "qiskit_machine_learning": [1.0, 1.0, 0.0, 0.225],
    "qiskit_machine_learning: networks": [1.0, 0.0, -1.0, -1.0],
    "qiskit_addon_cutting": [1.0],
    "qiskit_addon_obp": [0.0] * 3,
    "pennylane_qiskit": [1.0, 0.0, -1.0, 256],
    "mitiq": [1.0],
}


@pytest.fixture(params=PROGRAMS)
def name(request):
    library = request.param.partition(":")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: see setup.cfg, extra libraries")
    return request.param


def test_it_runs(ibm, fork, name):
    driver = fork(BEFORE + PROGRAMS[name])
    found = driver.line("result ")
    if name in RESULTS:
        assert [float(value) for value in found] == pytest.approx(RESULTS[name], abs=0.3)
    else:
        assert set(found) <= {"00", "01", "10", "11"}
    assert driver.end() == 0
    assert {job.status for job in ibm.jobs()} == {"Completed"}
    assert not ibm.journal(path="*/cancel")
    assert len(ibm.jobs()) >= 2


def test_it_is_killed(ibm, fork, name):
    """Some of its jobs are done, and one waits: that is cancelled, once."""
    driver = fork(BEFORE + PROGRAMS[name])
    driver.line("done ")
    ibm.hold("queued")
    until(ibm.jobs, lambda jobs: any(job.status == "Queued" for job in jobs))
    driver.watcher()  # one for all of its jobs
    driver.kill()
    ibm.wait_idle()
    wait_for_watchers(driver)
    fates = [(job.status, job.cancel_requests) for job in ibm.jobs()]
    assert fates.count(("Cancelled", 1)) == 1
    assert set(fates) == {("Completed", 0), ("Cancelled", 1)}
