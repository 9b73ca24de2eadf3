"""The programs that the drill runs as drivers. They find what `testkit.drivers` gives a driver, and their tag."""

from __future__ import annotations

from testkit import drivers

HEAD = """
import ctypes, fcntl, resource
from qiskit import qpy
os.environ["QX_STATE_DIR"] = {state!r}
os.environ["QX_SWEEP_WINDOW"] = {window!r}
os.environ["QX_LEASE_SECONDS"] = "1"
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
TAGS = [{tag!r}]
with open({circuit!r}, "rb") as _file:
    isa = qpy.load(_file)[0]
def drive(circuit=isa, on_status=tell, ours=None, **more):
    try:
        common = {{"shots": 64, "tags": TAGS, "panel": None, "on_status": on_status, **more}}
        result = run(circuit, "ibm_brisbane", service=ours or service(), **common)
        say("result", result.job_id)
    except RunError as error:
        say("raised", time.monotonic_ns(), type(error).__name__, error.job_id, error.reason.replace("\\n", " "))
"""

DRIVE = "drive()"

TRANSPILE_TOO = "drive(bell())"

LINGER = """
drive()
signal.pause()
"""

KEYED = "drive(key={key!r}, grace={grace})"

READY = """
from qx_supervisor import resume
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def _when_told(*arguments, claim=resume.claim):
    say("ready")
    signal.sigwait({signal.SIGUSR1})
    return claim(*arguments)
resume.claim = _when_told
"""
"""The lines that have a program ask for its key when a signal says so: what comes before takes a second or two."""

LEDGER = """
os.environ["QX_LEDGER"] = {ledger!r}
os.environ["QX_LEASE_SECONDS"] = "{lease}"
"""
"""The lines that have a program write to a shared ledger."""

ON_HOST = """
for _namespace in [open(_path) for _path in {namespaces!r}]:
    if ctypes.CDLL(None, use_errno=True).setns(_namespace.fileno(), 0):
        raise OSError(ctypes.get_errno(), "setns")
def service(token="local-key"):
    return connect({port}, token, {gateway!r})
"""
"""The lines that take a program to a host of `testkit.hosts`."""

REAPER = """
import qx_supervisor.service as services
services.accounts.every_service = lambda: [service()]
from qx_supervisor.cli import main
sys.exit(main(["reaper"]))
"""
"""`qx-supervisor reaper`, with the embedded service as the account that is saved."""

DIRECT = """
ours = service()
for client in ours._api_clients.values():
    client._session.base_url = f"http://127.0.0.1:{ibm.port}/api/v1"
    client._session.proxies = {}
drive(ours=ours)
"""
"""A driver that needs no proxy, as most don't: only through one would the client itself send a POST again that was
dropped, for it takes that for the proxy's trouble."""

IMPATIENT = """
from qx_supervisor.service import outages
outages.ANSWER_SECONDS = 1.0
"""
"""The lines that have a program wait no minute for the answer to its POST."""

GUARDED = """
from qiskit_ibm_runtime.executor_sampler import Sampler
sampler = Sampler(mode=backend())
sampler.options.environment.job_tags = TAGS
job = sampler.run([isa], shots=64)
say("queued", job.job_id())
result = None
while result is None:
    try:
        with guard(job):
            result = job.result()
    except Exception as error:
        say("caught", type(error).__name__)
say("result", job.job_id())
"""
"""A driver of Qiskit's own, which asks again when the service has failed it."""

PAUSE_AT_INTENT = """
from qx_supervisor.flight.submission import Submission
begin = Submission.begin_post
def begin_later(self):
    say("intent")
    time.sleep(0.1)
    begin(self)
Submission.begin_post = begin_later
drive()
"""

PAUSE_BEFORE_DONE = """
from qx_supervisor.link import link
stand_down = link.stand_down
def stand_down_later(*what):
    say("standing-down")
    time.sleep(0.1)
    stand_down(*what)
link.stand_down = stand_down_later
drive()
"""

TELL_WATCHERS = f"{drivers.TELL_WATCHERS}drive()\n"

LIVE_RUN = """
queued = threading.Event()
def note(status):
    tell(status)
    if status.state == "queued":
        queued.set()
held = submit(isa, "ibm_brisbane", service=service(), shots=64, tags=TAGS, on_status=note)
queued.wait()
"""

TWO_INSTANCES = """
account = connect(ibm.port, "local-key", instance=None)
backends = {{name: account.backend("ibm_brisbane", instance=name) for name in {instances!r}}}
held = [(submit(isa, backends[name], shots=64, tags=TAGS), name) for name in {instances!r} * 4]
while any(each.job_id is None for each, _ in held):
    time.sleep(0.005)
for each, _ in held:
    say("submitted", each.job_id)
say("all", *(f"{{each.job_id}}={{name}}" for each, name in held))
for each, _ in held:
    try:
        say("result", each.result().job_id)
    except RunError as error:
        say("raised", time.monotonic_ns(), type(error).__name__, error.job_id, error.reason.replace("\\n", " "))
"""
"""Runs at several instances at once."""

EXIT = f"""
{LIVE_RUN}
say("dying", time.monotonic_ns())
"""

DETACH = f"""
{LIVE_RUN}
held.detach()
say("detached")
signal.pause()
"""

CLOSE_DESCRIPTORS = """
from qx_supervisor.flight import Flight
abandon = Flight.abandon
def abandon_aloud(self, *arguments, **more):
    say("gives-up", time.monotonic_ns())
    return abandon(self, *arguments, **more)
Flight.abandon = abandon_aloud
def close_at_queued(status):
    tell(status)
    if status.state == "queued":
        os.closerange(3, 4096)
try:
    drive(on_status=close_at_queued)
except OSError as error:
    say("raised", time.monotonic_ns(), "OSError", error)
signal.pause()
"""

# Deeds for `at`.

DAEMONISE = """
if os.fork():
    say("dying", time.monotonic_ns())
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
say("daemon", os.getpid())
signal.pause()
"""

FORK_POOL = """
reader, writer = os.pipe()
for _ in range(4):
    if not os.fork():
        os.close(writer)
        os.read(reader, 1)  # ends with the driver
        os._exit(0)
"""

REAP = """
for reaped in reap(service()):
    say("reaped", reaped.fate, *reaped.jobs)
"""

CONTROL = """
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGUSR1, stop)
log = open({log!r}, "a", buffering=1)
lock = open({lock!r})
ours = service("key-of-the-control")
while going:
    fcntl.flock(lock, fcntl.LOCK_EX)  # a fault in a submission is meant for somebody else's
    try:
        known = threading.Event()
        held = submit(
            isa, "ibm_brisbane", service=ours, shots=16, tags=TAGS, poll_interval=2,
            on_status=lambda status: known.set() if status.job_id else None,
        )
        held.add_done_callback(lambda _: known.set())
        known.wait()
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        held.result()
        print("result", held.job_id, file=log)
    except RunError as error:
        print("failed", held.job_id, type(error).__name__, error.reason, file=log)
        ours = service("key-of-the-control")
"""
"""Runs job after job until it gets a SIGUSR1, and then ends with the one in flight."""


def at(state: str, deed: str) -> str:
    """A driver that does something itself when its run has come to a state.

    Args:
        state: Such as "queued".
        deed: Python code.
    """
    indented = "\n        ".join(deed.strip().splitlines())
    return f"""
def act(status):
    tell(status)
    if status.state == {state!r}:
        {indented}
drive(on_status=act)
"""
