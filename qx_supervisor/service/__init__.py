"""Qiskit's client for IBM Quantum: the only folder that touches `qiskit_ibm_runtime`.

`accounts`         the user's saved accounts
`saved_accounts`   faults in the file of saved accounts
`access`           access to an instance: its credentials, and its REST interface by the watcher's `remote`
`targets`          the requested backend, session or batch
`instances`        the requested instance, if a service has several
`simulators`       backends that are known to compute on this machine
`circuits`         transpiling circuits for a backend
`primitives`       samplers and estimators, and their results
`post`             the POST of a job
`client_warnings`  warnings of the client at a submission
`adoption`         hooks for a driver that uses Qiskit alone
`connections`      connections that a forked child must not share
`failures`         what the client's errors mean
`outages`          requests of the client that were not answered
`error_origin`     whether an exception comes from the service or from the program

Where the client has no public interface, these of its private ones are used, with a pinned minor version: its REST
session (address, token manager, proxies, requests), the three functions through which every POST of a job passes, its
clients by instance, and the decoders of a job's results.
"""

from . import accounts, saved_accounts
from .access import (
    account_name,
    address,
    clients_of,
    credentials,
    job_url,
    remote_of,
    server_clock,
)
from .adoption import Adopter, be_adopted
from .circuits import check_angles, not_isa, to_isa
from .error_origin import is_of_the_service
from .failures import describe, is_ambiguous, is_answered, is_unauthorized, said, status_of, unsent
from .outages import is_token_outage, noticing, outage
from .post import TAGS, PatientSubmission, Submission, submit, unwatch_session, watch_session
from .primitives import (
    class_of,
    decode,
    decoders_for,
    decoders_of,
    is_result,
    make_primitive,
    parts_of,
    run_local,
    tags_of,
)
from .targets import Guardable, Target, backend_asked_for, find_target, instances_near, what_to_guard

__all__ = [
    "TAGS",
    "Adopter",
    "Guardable",
    "PatientSubmission",
    "Submission",
    "Target",
    "account_name",
    "accounts",
    "address",
    "backend_asked_for",
    "be_adopted",
    "check_angles",
    "class_of",
    "clients_of",
    "credentials",
    "decode",
    "decoders_for",
    "decoders_of",
    "describe",
    "find_target",
    "instances_near",
    "is_ambiguous",
    "is_answered",
    "is_of_the_service",
    "is_result",
    "is_token_outage",
    "is_unauthorized",
    "job_url",
    "make_primitive",
    "not_isa",
    "noticing",
    "outage",
    "parts_of",
    "remote_of",
    "run_local",
    "said",
    "saved_accounts",
    "server_clock",
    "status_of",
    "submit",
    "tags_of",
    "to_isa",
    "unsent",
    "unwatch_session",
    "watch_session",
    "what_to_guard",
]
