"""What the tests share: an embedded service, drivers to kill, and the check that nothing is left behind.

Drivers are real programs in processes of their own. A test never sleeps: it waits for a line of the driver's, for an
end, or for a request in the service's journal.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import gc
import importlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest
from testkit import drivers, last_words
from testkit.browser import Missing as NoBrowser
from testkit.browser import chromium
from testkit.drivers import PRELUDE, Driver
from testkit.iam import reads_iam_url
from testkit.leaks import children, descriptors, is_left
from testkit.pages import CHECKOUT
from testkit.postgres import Missing, Server
from testkit.processes import DEADLINE, until, wait_for_first_run
from testkit.watchers import wait_for_watchers_in
from testkit.zygote import Zygote

from qx_supervisor import WatcherError, local, quota, threads
from qx_supervisor.cli import main
from qx_supervisor.link import link
from qx_supervisor.local import registry
from qx_supervisor.local.records import HOST

guards = importlib.import_module("qx_supervisor.guard")  # the package has a function of that name

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from qiskit_ibm_runtime import QiskitRuntimeService


# Whoever runs the tests may have had these signals ignored (nohup, a background job of a shell), and that goes on
# to every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Set up for older versions of Qiskit and its client."""
    if not reads_iam_url():  # whatever a test forgets, no request for a token leaves this machine: this port discards
        os.environ.setdefault("HTTPS_PROXY", "http://127.0.0.1:9")
        os.environ.setdefault("NO_PROXY", f"127.0.0.1,{HOST}")  # it would take the place of the account's proxy, too
    # With Qiskit 1 the client and Aer use what that deprecates, for the sake of Qiskit 2.
    config.addinivalue_line("filterwarnings", "ignore:The RuntimeOptions class is deprecated:DeprecationWarning")
    config.addinivalue_line("filterwarnings", r"ignore:.*is deprecated as of qiskit 1\.:DeprecationWarning")
    config.addinivalue_line("filterwarnings", r"ignore:qiskit\.providers\.models is deprecated:DeprecationWarning")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a failure show what its drivers and watchers said, and the service's journal."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        report.sections += last_words.of_drivers(sorted(drivers.made, key=lambda driver: driver.pid))
        if isinstance(state := item.funcargs.get("state"), Path):
            report.sections += last_words.of_watchers(state)
        if "ibm" in item.funcargs:
            report.sections += last_words.of_service(item.funcargs["ibm"])
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect in a third of the time.

    Next to nothing of what collection makes is garbage, and it lives as long as the tests do: none is looked for there.
    And in a new checkout half of the time goes to the rewriting of assertions: each worker begins with modules of its
    own, and reads what the others have rewritten from the cache.
    """
    gc.disable()
    try:
        worker = getattr(session.config, "workerinput", None)
        if worker is not None and _are_all(session.config):
            modules = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py"))
            _rewrite(modules[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]])
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def _are_all(config: pytest.Config) -> bool:
    return bool(config.args == config.getini("testpaths"))


def _rewrite(modules: Iterable[str]) -> None:
    for module in modules:
        # A module that raises is not kept, and raises again when it is collected.
        with contextlib.suppress(Exception, pytest.skip.Exception), warnings.catch_warnings():
            warnings.filterwarnings("error", module="test_")
            importlib.import_module(module)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests are long.

    Those inside an engine are, and a module's tests share the engine, so they go to one worker; and of a test that is
    `short_only` for some of its parameters, the others.
    """
    short: dict[tuple[Path, str], bool] = {}
    for item in items:
        if (patterns := item.get_closest_marker("short_only")) is not None:
            assert isinstance(item, pytest.Function)
            is_short = any(fnmatch.fnmatchcase(item.callspec.id, pattern) for pattern in patterns.args)
            if not is_short:
                item.add_marker(pytest.mark.long)
            test = item.path, item.originalname
            short[test] = short.get(test, False) or is_short
        if item.path.parent.name == "engines":
            item.add_marker(pytest.mark.long)
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    unmatched = [f"{path.name}::{name}" for (path, name), is_short in short.items() if not is_short]
    if unmatched and _are_all(config):
        raise pytest.UsageError(f"short_only names no parameters of {', '.join(unmatched)}")


@pytest.fixture(scope="session")
def running_service() -> Iterator[local.Service]:
    """One embedded service for all tests of this worker; it ends by itself, should the worker be killed."""
    with local.start(linger=local.LINGER) as service:
        service.health()
        yield service


@pytest.fixture
def ibm(running_service: local.Service) -> local.Service:
    """The embedded service, as new."""
    running_service.reset()
    return running_service


@pytest.fixture(scope="session")
def service(running_service: local.Service) -> QiskitRuntimeService:
    """Qiskit's client, for tests that run jobs in their own process."""
    return running_service.service()


@pytest.fixture
def tokens(ibm: local.Service) -> Iterator[local.Service]:
    """The embedded service, for tests that void tokens: clients that outlive the test have good ones again."""
    yield ibm
    ibm.reset()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own, which every watcher that it causes names in its command line."""
    folder = tmp_path / "state"
    monkeypatch.setenv("QX_STATE_DIR", str(folder))
    monkeypatch.setenv("QX_SWEEP_WINDOW", "2")
    return folder


@pytest.fixture(autouse=True)
def quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of what instances have left: not what another test had the embedded service tell."""
    for name in ("_known", "_due"):
        monkeypatch.setattr(quota, name, weakref.WeakKeyDictionary())


class Starter(Protocol):
    """Starts a driver."""

    def __call__(self, code: str, **options: Any) -> Driver: ...


@pytest.fixture(scope="session")
def zygote(running_service: local.Service) -> Iterator[Zygote]:
    """What drivers are forked from."""
    made = Zygote(running_service.port)
    yield made
    made.close()


@pytest.fixture
def write_script(ibm: local.Service, tmp_path: Path) -> Callable[[str], Path]:
    """Writes a driver's script: the code finds `ibm`, `service()`, `bell()`, `say()` and `tell`."""
    numbers = itertools.count()

    def write(code: str) -> Path:
        script = tmp_path / f"driver{next(numbers)}.py"
        script.write_text(PRELUDE.format(pid=ibm.pid, port=ibm.port) + textwrap.dedent(code))
        return script

    return write


@pytest.fixture
def fork(write_script: Callable[[str], Path], zygote: Zygote) -> Iterator[Starter]:
    """Starts drivers quickly: `fork(code)` runs the script in a process that has imported Qiskit already."""
    begun: list[Driver] = []

    def begin(code: str) -> Driver:
        begun.append(Driver(zygote.fork(write_script(code))))
        return begun[-1]

    yield begin
    for driver in begun:
        driver.clear()


@pytest.fixture
def start(write_script: Callable[[str], Path]) -> Iterator[Starter]:
    """Starts drivers as a user does, by a command: `start(code)`; `wrap` may change the command."""
    begun: list[Driver] = []

    def begin(code: str, *, wrap: Callable[[list[str]], list[str]] = list, **options: Any) -> Driver:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(Driver(subprocess.Popen(wrap([sys.executable, str(write_script(code))]), **streams | options)))
        return begun[-1]

    yield begin
    for driver in begun:
        driver.clear()


def end_watcher_at_work() -> None:
    """End this process's watcher if it still cancels for a test that is over: it would ask in the next one's time."""
    process = link._process
    with contextlib.suppress(WatcherError):
        if process is not None and link.inspect()["runs"]:
            psutil.Process(process.pid).kill()
            with link._changed:
                assert link._changed.wait_for(lambda: link._process is not process, DEADLINE)


def drop_requests_that_nobody_awaits() -> None:
    """Wait until this process's runs are over and ask nothing more, and have none of them ask later.

    What a job cost is read after its run's end, for whoever comes to look: the next test's journal would have it.
    """
    until(lambda: threads.runs() or _drop_later_looks() or _ask(), lambda has_work: not has_work)


def _drop_later_looks() -> int:
    with threads.timers._changed:
        works = [(timer, timer.work) for _, _, timer in threads.timers._timers]
    later = [timer for timer, work in works if isinstance(work, functools.partial) and work.func == threads.looking.do]
    for timer in later:
        timer.cancel()
    return len(later)


def _ask() -> bool:
    pools = (threads.announcing, threads.submitting, threads.asking, threads.ending, threads.parting, threads.looking)
    return any(pool._work or pool._idle < pool._threads for pool in pools)


@pytest.fixture(autouse=True)
def nothing_left_behind(state: Path) -> Iterator[None]:
    """No process, no descriptor and no temporary file is left by a test, and no other test's module is taken away."""
    assert isinstance(state, Path), "a parameter named state hides this fixture: the test would use the user's ledger"
    drivers.made.clear()
    modules = sys.modules.keys() - ()
    open_before = descriptors()
    before = children()
    yield
    wait_for_watchers_in(state)  # ours stays for the next test
    # What is guarded until this process ends would be cancelled then, at a service that is gone.
    for kept in list(guards._outliving.values()):
        kept.release()
    guards._outliving.clear()
    for run in list(link._runs):
        link.stand_down(run)
    end_watcher_at_work()
    drop_requests_that_nobody_awaits()
    link._deaths.clear()  # of watchers that were killed
    with link._changed:  # a run that was refused at once leaves a watcher that is being started
        assert link._changed.wait_for(lambda: link._process is not None or link._thread is None, DEADLINE)
    wait_for_first_run()
    left = [process for process in children() - before if is_left(process)]
    assert not left, f"processes left behind: {left}"
    watcher = link._process
    kept = {f"{watcher.pidfd} anon_inode:[pidfd]"} if watcher is not None else set()
    if not descriptors() - kept <= open_before:
        gc.collect()  # a handle of the service that is in a cycle, as what an example defines, closes its pidfd then
    # A thread that ends may have the ledger open for a moment.
    until(lambda: descriptors() - kept - open_before, lambda left: not left)
    assert not list(Path("/tmp").glob(f"qx-*-{os.getpid()}*"))
    # Imported anew, its classes would be others than those that modules around it know.
    assert modules <= sys.modules.keys()


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """The signal handlers are as they were."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture(autouse=True)
def quiet_logger() -> Iterator[None]:
    """The library's logger is as it was: what one test sets up would be heard twice, or not at all, by a later one."""

    def state() -> tuple[bool, int, list[str]]:
        kinds = [type(handler).__name__ for handler in logger.handlers]
        return logger.propagate, logger.level, [kind for kind in kinds if kind not in ("_Notices", "LogCaptureHandler")]

    logger = logging.getLogger("qx_supervisor")
    before = state()
    yield
    assert state() == before


@pytest.fixture
def here(ibm: local.Service, state: Path) -> local.Service:
    """The embedded service, where `--local` finds it."""
    registry.claim(ibm.pid, ibm.port)
    return ibm


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], str]]:
    """Calls the command in this process: its exit code, its lines on stdout, its stderr."""

    def call(*words: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        said = capsys.readouterr()
        gc.collect()  # the handle of the embedded service, which has a pidfd
        return int(caught.value.code or 0), said.out.splitlines(), said.err

    return call


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for all tests of this worker."""
    try:
        made = Server()
    except Missing as missing:
        pytest.skip(str(missing))
    yield made
    made.close()


@pytest.fixture
def shared_url(postgres: Server) -> str:
    """A database of the test's own."""
    return postgres.database()


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A headless Chromium of the test's own: its processes come and go with its pages."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(chromium())
        except NoBrowser as missing:
            pytest.skip(str(missing))
        yield made


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a one-file program that can import `watcher`; it is gone at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
