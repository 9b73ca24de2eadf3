"""`qx-supervisor login`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from .. import settings
from ..errors import ConfigError, RunError
from . import output, questions
from .group import debug_option

if TYPE_CHECKING:
    from ..service.saving import CheckedKey, Instance

EPILOG = """\b
  qx-supervisor login
  qx-supervisor login --token-stdin --instance my-instance <api-key

\b
The key is asked for, and not shown as you type. It is never an option: the
command line is seen by everybody on the machine, and the shell writes it
down. Make a key at https://quantum.cloud.ibm.com. It is saved where Qiskit's
client saves accounts, ~/.qiskit/qiskit-ibm.json, which only you can read."""

LONGEST_KEY = 4096


def _refuse(context: click.Context, _parameter: click.Parameter, given: str | None) -> None:
    if given is None:
        return
    raise click.UsageError(
        "an API key is no option, for everybody on this machine sees the command line, and the shell writes it down; "
        "leave it away and type it when asked, or use --token-stdin, and replace a key that was given so",
        context,
    )


@click.command("login", epilog=EPILOG)
@click.option("--token-stdin", is_flag=True, help="Read the API key from standard input, for scripts.")
@click.option(
    "--token", "--api-key", is_flag=False, flag_value="", hidden=True, expose_value=False, callback=_refuse,
)  # fmt: skip
@click.option("--instance", metavar="CRN|NAME", help="The instance to use; asked for if there are several.")
@click.option("--name", metavar="NAME", help="A name for the account, for those who save several.")
@click.option("--overwrite", is_flag=True, help="Replace what is saved without asking.")
@click.option("--url", metavar="URL", help="The service's address, if it is not IBM's public one.")
@debug_option
def login_command(
    *, token_stdin: bool, instance: str | None, name: str | None, overwrite: bool, url: str | None
) -> None:
    """Save an account: an API key, checked with the service, and an instance.

    It becomes the default account of Qiskit's client, and so of all programs that use it.
    """
    if name is not None and not name.strip():
        raise click.UsageError("--name is empty; give the account a name, or leave --name away")
    if not token_stdin and not questions.on_terminal():
        raise click.UsageError(
            "there is no terminal to ask for the API key; give it on standard input, with --token-stdin",
            click.get_current_context(),
        )
    if settings.uses_local():
        raise ConfigError(
            "config",
            f"{settings.LOCAL} is set: the embedded service would take any key, so nothing is checked or saved; "
            f"for a login at IBM Quantum: env -u {settings.LOCAL} qx-supervisor login",
        )
    from ..service import saved_accounts, saving

    account = name or saving.NAME
    _ask_to_replace(account, saving.saved(), overwrite=overwrite, asks=not token_stdin)
    text = _read_key(from_stdin=token_stdin)
    if not token_stdin:
        output.say("checking the key …")  # for seconds, in which somebody waits
    key = saving.CheckedKey(text, url)
    chosen = _choose(key, instance, asks=not token_stdin)
    key.check(chosen)
    key.save(chosen, account)
    output.say(f"saved in {saved_accounts.file()} as {account}, with the instance {_words(chosen)}; it is the default")
    if os.environ.get("QISKIT_IBM_TOKEN"):
        output.say("QISKIT_IBM_TOKEN is set, and is used instead of what is saved; unset it to use this account")
    output.say("next: qx-supervisor doctor")


def _ask_to_replace(account: str, saved: dict[str, bool], *, overwrite: bool, asks: bool) -> None:
    others = [name for name, is_default in saved.items() if is_default and name != account]
    effects = [f"replaces the saved account {account}"] if account in saved else []
    effects += [f"takes the place of {name} as the default account" for name in others]
    if not effects or overwrite:
        return
    effect = " and ".join(effects)
    if not asks:
        raise ConfigError("config", f"this {effect}; add --overwrite if that is meant, or another --name")
    if not click.confirm(f"This {effect}. Go on?", err=True):
        raise ConfigError("config", "nothing was changed; --name saves an account under another name")


def _read_key(*, from_stdin: bool) -> str:
    """Read the API key.

    Raises:
        ConfigError: It can't be one. The message quotes nothing of it.
    """
    if from_stdin:
        key = sys.stdin.read(LONGEST_KEY + 1).strip()
    else:
        key = str(click.prompt("API key (not shown)", hide_input=True, err=True)).strip()
    if not key:
        _no_key("there is none; make one at https://quantum.cloud.ibm.com")
    if len(key) > LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        _no_key("it has spaces, line breaks or other characters that no API key has; copy the key alone")
    return key


def _no_key(why: str) -> NoReturn:
    raise ConfigError("config", f"that is no API key: {why}")


def _choose(key: CheckedKey, wanted: str | None, *, asks: bool) -> Instance:
    """Choose an instance.

    Raises:
        RunError: There is none.
        ConfigError: There is none of this name, or nobody can be asked.
    """
    instances = key.instances
    if not instances:
        raise RunError(
            "auth",
            "the key is accepted, but can use no instance, so nothing is saved; make one at "
            "https://quantum.cloud.ibm.com/instances, or let its owner give you access",
        )
    names = ", ".join(_words(each) for each in instances)
    if wanted is not None:
        found = [each for each in instances if wanted in (each.crn, each.name)]
        if len(found) == 1:
            return found[0]
        fault = f"{len(found)} instances have the name {wanted}; give the CRN" if found else f"no instance is {wanted}"
        raise ConfigError("config", f"{fault}; there are {names}")
    if len(instances) == 1:
        return instances[0]
    if not asks:
        raise ConfigError("config", f"the key can use several instances; choose one with --instance: {names}")
    for number, each in enumerate(instances, 1):
        output.note(f"{number:3}  {_words(each)}")
    number = click.prompt("Which instance", type=click.IntRange(1, len(instances)), err=True)
    return instances[number - 1]


def _words(instance: Instance) -> str:
    return f"{instance.name} ({instance.plan})" if instance.plan else instance.name
