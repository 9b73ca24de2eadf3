"""The earlier signal handlers come back, at whatever moment a signal comes, and in a forked child at once."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from qx_supervisor import interrupts
from qx_supervisor.interrupts import SIGNALS, Interrupts


@pytest.mark.parametrize("call", range(2 * len(SIGNALS)))
def test_a_signal_while_handlers_are_exchanged(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """It has the earlier handler raise right after that one is back, or right before it goes."""
    real, calls = signal.signal, []

    def exchange(number: int, handler: Any) -> Any:
        calls.append(number)
        previous = real(number, handler)
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        return previous

    before = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(interrupts.signal, "signal", exchange)
        with pytest.raises(KeyboardInterrupt), Interrupts():
            pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not interrupts._entered


def test_a_forked_child_can_be_terminated(ibm, fork):
    """As `multiprocessing.Process.terminate` does; the run is its parent's."""
    ibm.hold("queued")
    driver = fork(
        """
        def fork_at_queued(status):
            if status.state == "queued":
                reader, writer = os.pipe()
                child = os.fork()
                if not child:
                    os.write(writer, b"!")
                    signal.pause()
                    os._exit(1)
                os.read(reader, 1)
                os.kill(child, signal.SIGTERM)
                say("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            tell(status)
        run(isa(), backend(), on_status=fork_at_queued)
        """
    )
    assert driver.line("child ") == [str(-signal.SIGTERM)]
    job = driver.queued()
    driver.send(signal.SIGTERM)
    assert driver.end() == 128 + signal.SIGTERM
    assert ibm.wait_job(job, "Cancelled").cancel_requests == 1
