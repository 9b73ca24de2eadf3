"""Saving an account: an API key is checked with the service before it is written to the official client's file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, RunError
from ..watcher import remote
from . import saved_accounts
from .access import clients_of, remote_of
from .failures import describe
from .outages import outage

CHANNEL = saved_accounts.CHANNELS[0]

NAME = "default-ibm-quantum-platform"
"""The name that the official client gives an account which has none."""

PERMISSIONS = 0o600

NO_TAG = "qxs-login"
"""A tag that no job has: looking for it is a cheap request."""


@dataclass(frozen=True)
class Instance:
    """An instance that an API key can use.

    Attributes:
        crn: Its CRN.
        name: Its name.
        plan: Its plan: "open", "premium" and so on; "" if that is not known.
    """

    crn: str
    name: str
    plan: str


class CheckedKey:
    """An API key that the service accepts.

    Args:
        key: The key.
        url: The service's address; None: IBM's.

    Raises:
        RunError: The service does not accept it, or can't be asked.
    """

    def __init__(self, key: str, url: str | None) -> None:
        self._key = key
        self._url = url
        service = self._connect(None)
        self.instances = [
            Instance(str(each.get("crn")), str(each.get("name")), str(each.get("plan") or ""))
            for each in service.instances()
        ]
        """What it can use."""

    def __repr__(self) -> str:
        return "CheckedKey()"

    def check(self, instance: Instance) -> None:
        """Make a cheap request at an instance.

        Raises:
            RunError: The instance can't be used.
        """
        there = remote_of(clients_of(self._connect(instance.crn))[0])
        try:
            there.unfinished(tag=NO_TAG)
        except remote.RemoteError as error:
            raise RunError(
                "auth",
                f"the key is accepted, but not at the instance {instance.name}, so nothing is saved ({error}); try "
                "again, or choose another --instance",
            ) from None

    def save(self, instance: Instance, name: str) -> None:
        """Save the account, as the default one, in a file that nobody else can read.

        Raises:
            ConfigError: It can't be written.
        """
        import qiskit_ibm_runtime

        before = os.umask(0o777 & ~PERMISSIONS & ~0o100)  # folders that are made can be entered
        try:
            qiskit_ibm_runtime.QiskitRuntimeService.save_account(
                channel=CHANNEL,
                token=self._key,
                url=self._url,
                instance=instance.crn,
                name=name,
                overwrite=True,
                set_as_default=True,
            )
            saved_accounts.file().chmod(PERMISSIONS)  # it may have been there before
        except OSError as error:
            raise ConfigError("config", f"the account can't be saved: {error.filename}: {error.strerror}") from None
        except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
            raise ConfigError("config", f"the account can't be saved ({type(error).__name__})") from None
        finally:
            os.umask(before)

    def _connect(self, instance: str | None) -> Any:
        import qiskit_ibm_runtime

        try:
            with _quiet():
                return qiskit_ibm_runtime.QiskitRuntimeService(
                    channel=CHANNEL, token=self._key, url=self._url, instance=instance
                )
        except Exception as error:  # noqa: BLE001 - the client raises many kinds of errors
            if outage(error) is not None:
                reason = "IBM Quantum can't be reached, so the key was not checked, and nothing is saved"
                raise RunError("auth", f"{reason}; check the network and its proxy, and try again") from None
            told = describe(error).replace(self._key, "[left out]")
            raise RunError(
                "auth",
                f"IBM Quantum does not accept this API key, so nothing is saved ({told}); make one at "
                "https://quantum.cloud.ibm.com, and log in again",
            ) from None


def saved() -> dict[str, bool]:
    """The names of the accounts that are saved, each with whether it is the default one.

    Raises:
        ConfigError: The file can't be read.
    """
    where = saved_accounts.file()
    try:
        accounts = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise ConfigError(
            "config", f"the saved accounts in {where} can't be read ({kind}); repair or remove the file"
        ) from None
    if not isinstance(accounts, dict) or not all(isinstance(each, dict) for each in accounts.values()):
        raise ConfigError("config", f"the saved accounts in {where} are no JSON object of accounts; remove the file")
    return {name: bool(each.get("is_default_account")) for name, each in accounts.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's warnings that a saved account is not used, and that no instance was chosen."""
    logger = logging.getLogger("qiskit_ibm_runtime")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
