"""What a watcher costs while nothing happens."""

from __future__ import annotations

from pathlib import Path

from qx_supervisor import local

from .programs import started
from .table import OURS, Measure

IDLE = """
from qx_supervisor import submit
from qx_supervisor.link import link
ballast = bytearray(int(sys.argv[3]) << 30)
for page in range(0, len(ballast), 4096):
    ballast[page] = 1
held = submit(make_isa(), "ibm_brisbane", service=service, poll_interval=3600)
while held.status().state != "queued":
    time.sleep(0.01)
time.sleep(5)  # what it loads in the background is loaded
def spent():  # in ms: proc(5), schedstat; to ask the watcher itself would cost it more than a minute's idling
    return int(open(f"/proc/{link.watcher_pid}/schedstat").read().split()[0]) / 1e6
before = spent()
time.sleep(float(sys.argv[4]))
after = spent()
print(link.inspect()["pss_kb"] / 1024, after - before, flush=True)
held.cancel()
"""


def idle_watcher(ibm: local.Service, folder: Path, seconds: float) -> list[Measure]:
    """Its memory in MB, and its CPU time over so many seconds; beside a small driver, and one of 8 GiB."""
    ibm.hold("queued")
    memory: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for whose, gigabytes in {"beside a driver of 8 GiB": 8, OURS: 0}.items():
        with started(ibm, IDLE, folder, gigabytes, seconds) as driver:
            pss, spent = driver.line()
            driver.process.wait()
        memory[whose], cpu[whose] = [float(pss)], [float(spent)]
    ibm.hold(None)
    size = Measure("armed idle watcher: memory (PSS)", "MB", memory, "≤ 40 MB; equal beside 8 GiB")
    size.judge(
        f"{size.median() / size.median('beside a driver of 8 GiB'):.2f} × that beside 8 GiB",
        is_met=max(memory[whose][0] for whose in memory) <= 40,
    )
    work = Measure(f"armed idle watcher: CPU in {seconds:.0f} s", "ms", cpu, "≤ 0.05 % of a core")
    share = work.median() / 1e3 / seconds
    return [size, work.judge(f"{share:.3%} of a core", is_met=share <= 0.0005)]
