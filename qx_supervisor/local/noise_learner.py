"""The program of `NoiseLearnerV3`: the simulation is exact, so what is learned is that there is no noise.

localqpu has no such program. Of the deprecated `NoiseLearner` jobs are accepted, and fail when they would be executed:
their results hold layers that only IBM's own program makes of circuits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from localqpu.programs import find_program_runner
from localqpu.programs.base import ExecutionSettings, ProgramInputError, ProgramOutput, ProgramRunner

NOISE_LEARNER = "noise-learner"
"""The program's id."""


def runner_of(program_id: str) -> ProgramRunner:
    """What executes a program.

    Raises:
        UnsupportedProgramError: Nothing does.
    """
    return learn_noise if program_id == NOISE_LEARNER else find_program_runner(program_id)


def learn_noise(params: dict[str, Any], settings: ExecutionSettings) -> ProgramOutput:
    """Learn the noise of boxed instructions: each has the rate 0.

    Raises:
        ProgramInputError: They are none, or the simulation has noise.
    """
    from qiskit_ibm_runtime.noise_learner_v3.converters import version_0_3
    from qiskit_ibm_runtime.results.noise_learner_v3 import NoiseLearnerV3Results

    if params.get("schema_version") != "v0.3":
        raise ProgramInputError("Of the noise learners, only jobs of NoiseLearnerV3 are executed here.")
    if settings.noise_backend is not None:
        raise ProgramInputError("Noise that is simulated can't be learned here; set the scenario's noise to false.")
    model = version_0_3.ParamsModel.model_validate(params)
    instructions, options = version_0_3.noise_learner_v3_inputs_from_0_3(model)
    learned = [_noiseless(each, options.layer_pair_depths) for each in instructions]
    payload = version_0_3.noise_learner_v3_result_to_0_3(NoiseLearnerV3Results(learned)).model_dump_json()
    return ProgramOutput(payload=payload, is_stub=False, entangled_qubits=0)


def _noiseless(instruction: Any, depths: list[int]) -> Any:
    from qiskit.quantum_info import QubitSparsePauliList
    from qiskit_ibm_runtime.noise_learner_v3.find_learning_protocol import find_learning_protocol
    from qiskit_ibm_runtime.results.noise_learner_v3 import NoiseLearnerV3Result

    protocol = find_learning_protocol(instruction)
    if protocol is None:
        raise ProgramInputError("No learning protocol is known for one of the instructions.")
    width = len(instruction.qubits)
    is_trex = protocol == "trex"  # readout; all else is a layer of gates
    if is_trex:
        terms = [("X", [qubit]) for qubit in range(width)]
        kept: dict[str, Any] = {"fraction_kept": 1.0, "success_rates": {}}
    else:
        terms = list(_terms(instruction, width))
        kept = {"fraction_kept": dict.fromkeys(depths, 1.0), "success_rates": {}}
    return NoiseLearnerV3Result.from_generators(
        generators=[QubitSparsePauliList.from_sparse_list([term], width) for term in terms],
        rates=[0.0] * len(terms),
        metadata={"learning_protocol": "trex" if is_trex else "lindblad", "post_selection": kept},
    )


def _terms(instruction: Any, width: int) -> Iterator[tuple[str, list[int]]]:
    """The Pauli strings of a learned layer: one qubit each, or two that a gate of the box joins."""
    for qubit, letter in itertools.product(range(width), "XYZ"):
        yield letter, [qubit]
    body = instruction.operation.body
    for inside in body.data:
        if len(inside.qubits) == 2:
            pair = [body.find_bit(bit).index for bit in inside.qubits]
            for letters in itertools.product("XYZ", repeat=2):
                yield "".join(letters), pair
