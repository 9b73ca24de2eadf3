"""What may be wrong with the accounts that the user has saved: found out from the file, and nothing of it quoted."""

from __future__ import annotations

import json
import os
from pathlib import Path

CHANNELS = ("ibm_quantum_platform", "ibm_cloud")
"""Those that there are. `ibm_quantum`, which all accounts saved before 2025 are of, was shut down in July 2025."""

_SAVE_ANEW = (
    'QiskitRuntimeService.save_account(channel="ibm_quantum_platform", token=..., instance=..., overwrite=True, '
    "set_as_default=True)"
)


def file() -> Path:
    """Where the official client keeps them."""
    from qiskit_ibm_runtime.accounts.management import _DEFAULT_ACCOUNT_CONFIG_JSON_FILE

    return Path(_DEFAULT_ACCOUNT_CONFIG_JSON_FILE)


def fault() -> str:
    """What keeps the account that the client would take from being used, and what to do; "" where nothing is known."""
    asked = os.environ.get("QISKIT_IBM_CHANNEL")
    if asked and asked not in CHANNELS:
        return (
            f"QISKIT_IBM_CHANNEL is {asked}, and IBM Quantum has no such channel (any more); set it to "
            f"{CHANNELS[0]}, with a token from quantum.cloud.ibm.com, or unset it"
        )
    if os.environ.get("QISKIT_IBM_TOKEN"):  # then the file is not looked at
        return ""
    where = file()
    try:
        accounts = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        return f"the saved accounts in {where} can't be read ({kind}); mend or remove the file, and save: {_SAVE_ANEW}"
    if not isinstance(accounts, dict) or not all(isinstance(each, dict) for each in accounts.values()):
        return f"the saved accounts in {where} are no JSON object of accounts; remove the file, and save: {_SAVE_ANEW}"
    # One of a channel that there is would be found, unless another is the default.
    defaults = {name: each for name, each in accounts.items() if each.get("is_default_account")}
    looked_at = defaults or accounts
    old = {name: each.get("channel") for name, each in looked_at.items() if each.get("channel") not in CHANNELS}
    if not old or len(old) < len(looked_at):
        return ""
    name, channel = next(iter(old.items()))
    of = f"of the channel {channel}, which IBM Quantum has no more" if channel else "of no channel"
    return f"the saved account {name!r} is {of}; make an API key at quantum.cloud.ibm.com, and save it: {_SAVE_ANEW}"
