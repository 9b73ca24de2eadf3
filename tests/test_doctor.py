"""`qx-supervisor doctor`: what it finds where something is amiss, that it shows no secret, and its drill."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from testkit.client import need_iam_url
from testkit.drivers import RUN, kill_both
from testkit.processes import wait_for_end
from testkit.watchers import titles

from qx_supervisor import doctor, kill_test, local, node_launch, placement, service, settings
from qx_supervisor.cli import main
from qx_supervisor.doctor import Finding, account, machine
from qx_supervisor.service import internals
from qx_supervisor.watcher import ledger, system

KEY = "sentinel-0123456789abcdefghijklmnopqrstuvwxyz"

NAMES = [
    "versions",
    "pidfd" if system.HAS_LINUX else "deaths",
    "state directory",
    "guarded runs",
    "place",
    "exec",
    "settings",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's account."""
    from qiskit_ibm_runtime.accounts import management

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(service.accounts, "_defaults", (None, {}))  # what an earlier test had
    monkeypatch.setattr(management, "_DEFAULT_ACCOUNT_CONFIG_JSON_FILE", str(tmp_path / "qiskit-ibm.json"))
    for name in list(os.environ):
        if name.startswith(("QISKIT_IBM_", "SLURM_", "QX_TEST_", "QX_VENV")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def key(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    """An account in the environment; the embedded service is the proxy to its hosts, which are made up."""
    need_iam_url()
    monkeypatch.setenv("QISKIT_IBM_TOKEN", KEY)
    monkeypatch.setenv("QISKIT_IBM_URL", "http://qx.test")
    monkeypatch.setenv("QISKIT_IBM_INSTANCE", "crn:v1:bluemix:public:quantum-computing:us-east:a/localqpu::localqpu")
    monkeypatch.setenv("IAM_URL", "http://iam.qx.test")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ibm.port}")
    return KEY


def findings(check: Callable[[], Any] = machine.check) -> dict[str, Finding]:
    return {found.check: found for found in check()}


def find(name: str) -> Finding:
    return findings()[name]


def test_all_is_well(state: Path) -> None:
    found = findings()
    assert list(found) == NAMES
    warned = {"place"}  # in a container
    if not system.HAS_LINUX:
        warned.add("deaths")
    assert {name for name, each in found.items() if each.verdict != "ok"} <= warned
    for name in ("qx-supervisor", "qiskit", "qiskit-ibm-runtime", "psutil"):
        assert f"{name} {importlib.metadata.version(name)}" in found["versions"].text
    assert os.uname().release in found["versions"].text
    assert f"{state}, mode 0700, writable, on a local disk" in found["state directory"].text
    assert f"QX_STATE_DIR={state}" in found["settings"].text
    assert "python -I, -E or -S" in found["exec"].text


def test_every_setting_is_known() -> None:
    """Each QX_ variable that the code reads, and no other."""
    root = Path(kill_test.__file__).parent.parent
    sources = [*root.glob("qx_supervisor/**/*.py"), *root.glob("watcher/**/*.py")]
    read = {name for file in sources for name in re.findall(r'"(QX_[A-Z_]+)"', file.read_text())}
    assert read == set(settings.MEANINGS)


# What may be amiss


def test_a_client_that_is_newer_than_any_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "version", lambda: "99.1.0")
    found = find("versions")
    assert found.verdict == "warning"
    assert found.next_step.endswith(f"-m pip install 'qiskit-ibm-runtime=={internals.NEWEST}'")


def test_a_client_that_lacks_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "_checked", set())
    monkeypatch.setattr(internals, "_METHODS", {"RuntimeClient": {"job_pause": ()}})
    found = find("versions")
    assert found.verdict == "fault"
    assert "has no RuntimeClient.job_pause" in found.text
    assert found.next_step == f"install one that works: {internals.install_command()}"


def test_a_python_that_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = collections.namedtuple("kind", "major minor")
    monkeypatch.setattr(machine.sys, "version_info", kind(3, 14))
    assert find("versions").verdict == "warning"


def test_linux_without_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    found = find("pidfd")
    assert found.verdict == "warning"
    assert "Function not implemented" in found.text


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_state_directory_that_others_can_write_to(state: Path, mode: int) -> None:
    state.mkdir()
    state.chmod(mode)
    found = findings()
    assert found["state directory"].verdict == "fault"
    assert "others can write to it" in found["state directory"].text
    assert "QX_STATE_DIR" in found["state directory"].next_step
    assert "guarded runs" not in found
    assert main_code("--no-drill") == 1


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MIN_FREE", 1 << 70)
    found = find("state directory")
    assert (found.verdict, "its disk is full" in found.text) == ("warning", True)


def test_what_was_left_behind(ibm: local.Service, fork: Any) -> None:
    ibm.hold("queued")
    driver = fork(RUN)
    driver.queued()
    assert find("guarded runs").text.startswith("1 live, 0 ending, 0 left behind")
    kill_both(driver)
    found = find("guarded runs")
    assert (found.verdict, found.text[:31]) == ("warning", "0 live, 0 ending, 1 left behind")
    assert found.next_step.endswith("qx-supervisor reap")


def test_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = placement.advice(7, {"SLURM_JOB_ID": "42"}, "0::/slurm/job_42", at_terminal=False, kill_mode=lambda *_: "")
    monkeypatch.setattr(placement, "here", lambda: advice)
    found = find("place")
    assert found.verdict == "warning"
    assert "Slurm job 42" in found.text
    assert found.next_step.startswith("Run `qx-supervisor reap --wait 60` after the step")
    monkeypatch.setattr(placement, "here", lambda: "")
    monkeypatch.setattr(machine, "_in_container", lambda: True)
    assert "when its process 1 ends" in find("place").text
    monkeypatch.setattr(machine, "_in_container", lambda: False)
    assert find("place").verdict == "ok"


def test_a_pod_without_an_account_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file in it tells that it is one."""
    monkeypatch.setattr(placement, "here", lambda: "")
    monkeypatch.setattr(machine, "_CONTAINER_FILES", ())
    assert find("place").verdict == "ok"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "when its process 1 ends" in find("place").text


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("QX_WATCHER_PLACEMENT", "sytemd", "it may be beside (as if unset), node or systemd"),
        ("QX_WATCHER_PLACEMENT", "systemd", "or unset QX_WATCHER_PLACEMENT"),
        ("QX_LEASE_SECONDS", "soon", "it must be a number of seconds, such as 30"),
        ("QX_SWEEP_WINDOW", "-1", "it must be a number of seconds, such as 120"),
        ("QX_BUDGET", "abc", "must be a number of seconds of at least 1, not 'abc'"),
        ("QX_LABEL", "two\nlines", "must be one line of 100 printable characters or fewer"),
    ],
)
def test_a_setting_with_which_nothing_is_submitted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, step: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")  # where no user manager answers
    monkeypatch.setenv(name, value)
    found = find("settings")
    assert (found.verdict, found.next_step.startswith(name)) == ("fault", True)
    assert step in found.next_step


def test_a_price_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_PRICE", "cheap")
    found = find("settings")
    assert (found.verdict, "with that, usage shows nothing" in found.text) == ("warning", True)
    assert found.next_step.endswith("it must be an amount and a currency, such as 1.60 USD")


def test_a_folder_in_which_no_watcher_can_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_launch, "LONGEST_BASE", 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("QX_WATCHER_PLACEMENT", "node")
    assert find("settings").verdict == "ok"
    (tmp_path / "qx_supervisor").chmod(0o777)
    found = find("settings")
    assert found.verdict == "fault"
    assert "can be entered by others" in found.next_step


def test_a_setting_that_is_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QX_STATEDIR", "/a/secret/place")
    found = find("settings")
    assert found.verdict == "warning"
    assert "unknown: QX_STATEDIR" in found.text
    assert "/a/secret/place" not in found.text
    assert "QX_STATE_DIR" in found.next_step


# The account, the service, the clock


def test_no_account_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.accounts, "default_service", lambda: pytest.fail("it was asked"))
    (found,) = account.check()
    assert (found.check, found.verdict) == ("account", "warning")
    assert "qx-supervisor login" in found.next_step


def test_an_account_file_that_is_damaged(home: Path) -> None:
    (home / "qiskit-ibm.json").write_text(f'{{"default": {{"token": "{KEY}"')
    (found,) = account.check()
    assert found.verdict == "fault"
    assert KEY not in found.text + found.next_step


def test_an_account_of_a_channel_that_is_no_more(home: Path) -> None:
    old = {"channel": "ibm_quantum", "token": KEY, "url": "https://auth.example", "instance": "ibm-q/open/main"}
    (home / "qiskit-ibm.json").write_text(json.dumps({"default-ibm-quantum": old}))
    (found,) = account.check()
    assert found.verdict == "fault"
    assert found.text.startswith("the saved account 'default-ibm-quantum' is for the channel ibm_quantum, ")
    assert "save_account(" in found.next_step
    assert KEY not in found.text + found.next_step


@pytest.mark.parametrize(
    ("instance", "shown"),
    [
        ("", "not chosen"),
        ("crn:v1:bluemix:public:quantum-computing:eu-de:a/0f0f:1234-5678-9abc::", "crn:…:eu-de:…9abc"),
        ("my-instance", "my…"),
        ("crn:short", "crn:…::…"),
    ],
)
def test_an_instance_is_redacted(instance: str, shown: str) -> None:
    assert account.redacted(instance) == shown


def test_the_service_answers(key: str, ibm: local.Service) -> None:
    found = findings(account.check)
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(
        ["account", "service", "quota", "clock"], "ok"
    )
    assert "from QISKIT_IBM_TOKEN" in found["account"].text
    assert "http://quantum.qx.test/api/v1 answers" in found["service"].text
    assert not ibm.journal(method="POST", path="/api/v1/jobs")
    assert ibm.journal(method="HEAD")
    assert key not in str(found)


@pytest.mark.parametrize(("by", "word"), [(600.0, "ahead of"), (-600.0, "behind")])
def test_a_clock_that_is_wrong(key: str, monkeypatch: pytest.MonkeyPatch, by: float, word: str) -> None:
    real = service.server_clock
    monkeypatch.setattr(service, "server_clock", lambda client, seconds: real(client, seconds) - by)
    found = findings(account.check)["clock"]
    assert found.verdict == "warning"
    assert re.search(rf"(599|600|601) s {word} the service", found.text)


@pytest.mark.parametrize(
    ("usage", "verdict", "said"),
    [
        ({"limit_seconds": 600, "consumed_seconds": 100}, "ok", "100 s of 600 s are used, 500 s are left, its period "),
        ({"limit_seconds": 600, "consumed_seconds": 550}, "warning", "little time is left: 550 s of 600 s are used"),
        ({"limit_seconds": 600, "consumed_seconds": 612}, "warning", "no time is left, and jobs wait: 612 s of 600 s"),
    ],
)
@pytest.mark.usefixtures("key")
def test_quota(ibm: local.Service, usage: dict[str, int], verdict: str, said: str) -> None:
    ibm.scenario({"usage": usage})
    found = findings(account.check)["quota"]
    assert (found.verdict, found.text[: len(said)]) == (verdict, said)
    assert "https://" in found.next_step or verdict == "ok"


def test_a_service_that_does_not_tell_the_quota(key: str, ibm: local.Service) -> None:
    ibm.scenario({"http_faults": [{"path": "/api/v1/instances/usage", "status": 500, "times": 100}]})
    found = findings(account.check)
    assert key not in str(found)
    assert (found["service"].verdict, found["quota"].verdict) == ("ok", "warning")


def test_an_account_that_is_refused(key: str, ibm: local.Service) -> None:
    ibm.auth(reject_tokens=True)
    found = findings(account.check)
    ibm.auth(reject_tokens=False)
    assert [each.verdict for each in found.values()] == ["ok", "fault"]
    assert "API key" in found["service"].next_step
    assert key not in str(found)


def test_a_service_that_is_silent(key: str, ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ibm.scenario({"http_faults": [{"path": "/api/v1/backends", "delay_seconds": 30}]})
    monkeypatch.setattr(account, "SECONDS", 0.5)
    found = findings(account.check)["service"]
    assert (found.verdict, found.text) == ("fault", "no answer within 0.5 s")
    ibm.reset()  # which ends the request that is under way


# The command


def command_help(name: str) -> str:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command.get_help(click.Context(command))


def main_code(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *words])
    return int(caught.value.code or 0)


def test_the_command(key: str, ibm: local.Service, state: Path) -> None:
    """All of it, as a user sees it; and the key, which is in its environment, is nowhere."""
    words = [sys.executable, "-m", "qx_supervisor", "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {found["check"]: found for found in map(json.loads, done.stdout.splitlines())}
    assert list(told) == [*NAMES, "account", "service", "quota", "clock", "kill -9 drill"]
    assert all(list(found) == ["check", "verdict", "text", "next_step"] for found in told.values())
    text = told["kill -9 drill"]["text"]
    took = re.fullmatch(r"a driver was killed; (\d+) ms later the service was asked to cancel its job, and did", text)
    assert took, text
    assert int(took[1]) < 10_000
    with ledger.Ledger.open(state) as book:
        assert book.rows() == []  # the drill's is no run of the user's
    documented = " ".join(re.findall(r"^ +check {2,}(.*?);", command_help("doctor"), re.M | re.S)[0].split())
    assert set(re.split(", | or ", documented)) == {*told, "pidfd", "kqueue", "deaths", "shared ledger", "sessions"}
    assert key not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 2  # what takes a while
    assert not ibm.jobs()  # the drill has a service of its own


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_code("--no-drill") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:26].strip() for line in lines] == [*NAMES, "account"]
    assert lines[-1].startswith("warning  account")
    assert ". Next: " in lines[-1]


def test_without_the_embedded_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QX_LOCAL_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (found,) = doctor.kill_test.check()
    assert found.verdict == "warning"
    assert found.next_step == "pip install 'qx-supervisor[local]' (in a checkout: '.[local]')"


@pytest.mark.long
def test_a_drill_that_fails_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver can't even start."""
    monkeypatch.setattr(kill_test, "DRIVER", "raise SystemExit('no room')")
    (found,) = doctor.kill_test.check()
    assert (found.verdict, found.text) == ("fault", "the driver ended before its job was queued: no room")


def test_a_drill_touches_neither_budgets_nor_the_users_runs(
    ibm: local.Service, monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    """A budget is all reserved by a run that is under way; the drill needs none of it, and is no user's run."""
    monkeypatch.setenv("QX_BUDGET", "1")
    with ledger.Ledger.open(state) as book:
        book.set_budget(ledger.standing(1.0, "month", "", ""))
        book.reserve(ledger.ReservationWish(run="under way", post="p1", instance="crn", label="", most=100))
        [balance] = book.balances()
        assert balance.left == 0
    tested = kill_test.kill_a_driver(ibm, is_quiet=True)
    assert (tested.status, tested.cancel_requests) == ("Cancelled", 1)
    assert os.environ["QX_STATE_DIR"] == str(state)
    with ledger.Ledger.open(state) as book:
        assert book.rows() == []


@pytest.mark.long
def test_a_drill_whose_watcher_stays(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays for as long as a shared watcher does without drivers, and is not waited for."""
    base = Path(tempfile.mkdtemp(prefix="qx-node-"))  # pytest's own path is too long for a socket
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    monkeypatch.setenv("QX_WATCHER_PLACEMENT", "node")
    drills: list[Path | str] = []
    tested = kill_test.kill_a_driver(
        ibm, is_quiet=True, before_kill=lambda _: drills.append(os.environ["QX_STATE_DIR"])
    )
    assert (tested.status, tested.cancel_requests) == ("Cancelled", 1)
    [watcher] = [process for process, title in titles() if title.is_in(*drills)]
    watcher.terminate()  # it has nothing to do
    wait_for_end(watcher)
    shutil.rmtree(base)


@pytest.mark.long
def test_a_job_that_is_not_cancelled_is_a_fault(ibm: local.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nobody to cancel it: the driver runs without a watcher."""
    no_python = "import sys\nsys.frozen = True\n"
    unguarded = kill_test.DRIVER.replace("import sys\n", no_python, 1).replace("status.watcher,", "2**22,")
    monkeypatch.setattr(kill_test, "DRIVER", unguarded.replace('"plain"', '"plain", on_unprotected="warn"'))
    with pytest.raises(kill_test.KillTestError, match="the killed driver's job was not cancelled: 0 of 1 requests"):
        kill_test.kill_a_driver(
            ibm, is_quiet=True, before_kill=lambda _: monkeypatch.setattr(kill_test, "TIMEOUT", 0.5)
        )
    assert [job.status for job in ibm.jobs()] == ["Queued"]
