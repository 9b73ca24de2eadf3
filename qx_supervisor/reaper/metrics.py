"""A reaper's counts for Prometheus, on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..distribution import extra
from ..errors import ConfigError
from .counts import Counts


def serve(counts: Counts, port: int) -> Callable[[], None]:
    """Serve the counts at http://127.0.0.1:PORT/metrics.

    Args:
        counts: What is told.
        port: The port.

    Returns:
        What ends it.

    Raises:
        ConfigError: If that can't be done.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
    except ImportError:
        raise ConfigError(
            "config",
            f"--metrics needs the package prometheus-client: {extra('postgres')}",
        ) from None

    class Collector:
        """Tells the counts as they are when they are asked for."""

        def collect(self) -> Iterator[Metric]:
            with counts.lock:
                yield GaugeMetricFamily("qx_database_up", "Whether the database answers.", float(counts.is_up))
                for name, text, value in (
                    ("leases_held", "Leases that are renewed.", counts.held),
                    ("leases_expired", "Leases that have run out, with runs in their grace.", counts.expired),
                    ("runs_reaping", "Runs that are being cancelled, by any reaper.", counts.reaping),
                    ("runs_pending", "Runs that are to be swept again.", counts.pending),
                    ("runs_other_account", "Unfinished runs of accounts not at hand here.", counts.other_account),
                ):
                    yield GaugeMetricFamily(f"qx_{name}", text, value)
                for name, text, value in (
                    ("leases_claimed", "Runs that this reaper has claimed.", counts.claimed),
                    ("jobs_cancelled", "Jobs whose cancel this reaper has confirmed.", counts.cancelled),
                    ("claims_lost", "Claims of this reaper that another holder has now.", counts.lost),
                ):
                    yield CounterMetricFamily(f"qx_{name}", text, value)
                fates = CounterMetricFamily("qx_runs_reaped", "What became of the runs.", labels=["fate"])
                for fate in ("cancelled", "nothing left", "pending", "expired"):
                    fates.add_metric([fate], counts.outcomes[fate])
                yield fates
                for name, text, took in (
                    ("renew", "Seconds to renew this reaper's own lease.", counts.renew),
                    ("claim", "Seconds to claim what is due.", counts.claim),
                ):
                    yield SummaryMetricFamily(f"qx_{name}_seconds", text, took.times, took.seconds)

    registry = CollectorRegistry()
    registry.register(Collector())
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigError("config", f"the metrics can't be served on port {port}: {error.strerror}") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
