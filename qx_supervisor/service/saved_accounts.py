"""Finds faults in the file of saved accounts. The messages quote none of its secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path

from . import internals

CHANNELS = ("ibm_quantum_platform", "ibm_cloud")
"""IBM's channels. `ibm_quantum`, the channel of most older accounts, was shut down in July 2025."""

_SAVE = (
    'QiskitRuntimeService.save_account(channel="ibm_quantum_platform", token=..., instance=..., overwrite=True, '
    "set_as_default=True)"
)


def file() -> Path:
    """The official client's file."""
    return Path(internals.find("_DEFAULT_ACCOUNT_CONFIG_JSON_FILE"))


def fault() -> str:
    """Why the account that the client would use can't be used, and what to do; "" if no fault is known."""
    channel = os.environ.get("QISKIT_IBM_CHANNEL")
    if channel and channel not in CHANNELS:
        return (
            f"QISKIT_IBM_CHANNEL is {channel}, and IBM Quantum has no such channel (any more); set it to "
            f"{CHANNELS[0]}, with a token from quantum.cloud.ibm.com, or unset it"
        )
    if os.environ.get("QISKIT_IBM_TOKEN"):  # then the client does not read the file
        return ""
    where = file()
    try:
        accounts = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        return f"the saved accounts in {where} can't be read ({kind}); repair or remove the file, and save: {_SAVE}"
    if not isinstance(accounts, dict) or not all(isinstance(each, dict) for each in accounts.values()):
        return f"the saved accounts in {where} are not a JSON object of accounts; remove the file, and save: {_SAVE}"
    # The client takes the default account or, if there is none, any account of an existing channel.
    defaults = {name: each for name, each in accounts.items() if each.get("is_default_account")}
    candidates = defaults or accounts
    old = {name: each.get("channel") for name, each in candidates.items() if each.get("channel") not in CHANNELS}
    if not old or len(old) < len(candidates):
        return ""
    name, channel = next(iter(old.items()))
    which = f"the channel {channel}, which IBM Quantum has shut down" if channel else "no channel"
    return f"the saved account {name!r} is for {which}; make an API key at quantum.cloud.ibm.com, and save it: {_SAVE}"
