"""Qiskit's client for IBM Quantum: the only folder that touches `qiskit_ibm_runtime`.

`internals`        what of the client is not public
`accounts`         the user's saved accounts
`saved_accounts`   faults in the file of saved accounts
`embedded`         the embedded service in the place of an account
`saving`           checking an API key, and saving an account
`access`           access to an instance: its credentials, and its REST interface by the watcher's `remote`
`targets`          the requested backend, session or batch
`instances`        the requested instance, if a service has several
`simulators`       backends that are known to compute on this machine
`circuits`         transpiling circuits for a backend
`isa_circuits`     circuits that were transpiled before
`primitives`       samplers and estimators, and their results
`programs`         what executors and noise learners take
`post`             the POST of a job
`client_warnings`  warnings of the client at a submission
`adoption`         hooks for a driver that uses Qiskit alone
`connections`      connections that a forked child must not share
`failures`         what the client's errors mean
`outages`          requests of the client that were not answered
`error_origin`     whether an exception comes from the service or from the program
"""

from . import accounts, embedded, programs, saved_accounts, saving
from .access import (
    account_name,
    address,
    clients_of,
    credentials,
    instance_names,
    job_url,
    remote_of,
    server_clock,
)
from .adoption import Adopter, be_adopted
from .circuits import Transpiling, check_angles, not_isa, takes_few_rotations, to_isa
from .error_origin import is_of_the_service
from .failures import describe, is_ambiguous, is_answered, is_unauthorized, said, status_of, unsent
from .internals import backend_of, install_command, is_a, is_untried, mode_of
from .internals import check as check_client
from .isa_circuits import IsaCircuits, isa_circuits_of, keep_isa_circuits
from .outages import is_token_outage, noticing, outage
from .post import TAGS, PatientSubmission, Posting, Submission, submit, unwatch_session, watch_session
from .primitives import (
    class_of,
    decode,
    decoders_for,
    decoders_of,
    is_result,
    make_primitive,
    parts_of,
    tags_of,
    with_own_options,
)
from .targets import (
    Guardable,
    Target,
    backend_asked_for,
    find_job,
    find_target,
    in_batch,
    instances_near,
    local_session,
    target_of_primitive,
    what_to_guard,
)

__all__ = [
    "TAGS",
    "Adopter",
    "Guardable",
    "IsaCircuits",
    "PatientSubmission",
    "Posting",
    "Submission",
    "Target",
    "Transpiling",
    "account_name",
    "accounts",
    "address",
    "backend_asked_for",
    "backend_of",
    "be_adopted",
    "check_angles",
    "check_client",
    "class_of",
    "clients_of",
    "credentials",
    "decode",
    "decoders_for",
    "decoders_of",
    "describe",
    "embedded",
    "find_job",
    "find_target",
    "in_batch",
    "install_command",
    "instance_names",
    "instances_near",
    "is_a",
    "is_ambiguous",
    "is_answered",
    "is_of_the_service",
    "is_result",
    "is_token_outage",
    "is_unauthorized",
    "is_untried",
    "isa_circuits_of",
    "job_url",
    "keep_isa_circuits",
    "local_session",
    "make_primitive",
    "mode_of",
    "not_isa",
    "noticing",
    "outage",
    "parts_of",
    "programs",
    "remote_of",
    "said",
    "saved_accounts",
    "saving",
    "server_clock",
    "status_of",
    "submit",
    "tags_of",
    "takes_few_rotations",
    "target_of_primitive",
    "to_isa",
    "unsent",
    "unwatch_session",
    "watch_session",
    "what_to_guard",
    "with_own_options",
]
