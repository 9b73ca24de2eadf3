"""The alert rules and the dashboard for a reaper's metrics: they are well formed, fire when they should, and ask for
nothing that a reaper does not tell."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from testkit.processes import DEADLINE

from qx_supervisor import local

pytestmark = pytest.mark.long

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "deploy"
RULES = FOLDER / "prometheus" / "alerts.yml"
DASHBOARD = FOLDER / "grafana" / "dashboard.json"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "ledger.md"

PROMTOOL = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: apt-get install prometheus)"
)

REAPER = """
os.dup2(1, 2)
import qx_supervisor.service as services
services.accounts.every_service = lambda: [service()]
from qx_supervisor.cli import main
main(["reaper", "--metrics", "{port}"])
"""


def promtool(*words: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words],
        input=text,
        capture_output=True,
        text=True,
        cwd=RULES.parent,
        timeout=DEADLINE,
        check=False,
    )


def queries() -> list[str]:
    """What the dashboard asks Prometheus."""
    found = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(value[name] for name in ("expr",) if name in value)
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(json.loads(DASHBOARD.read_text()))
    return found


def alerts() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the rules (pip install kubernetes-validate)")
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bqx_\w+", text))


@pytest.fixture
def told(ibm: local.Service, fork: Any, shared_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a real reaper tells Prometheus."""
    monkeypatch.setenv("QX_LEDGER", shared_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reaper = fork(REAPER.format(port=port))
    while "reaping" not in " ".join(reaper.line("")):
        pass
    yield requests.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE).text
    reaper.send(signal.SIGTERM)
    assert reaper.end() == 0


def test_what_they_ask_for_is_told_by_a_reaper(told: str) -> None:
    there = {line.partition(" ")[0].partition("{")[0] for line in told.splitlines() if not line.startswith("#")}
    labels = {"up", *there}
    asked = {name for text in (*queries(), *(rule["expr"] for rule in alerts())) for name in metrics_in(text)}
    assert asked
    assert asked - labels == set()
    families = {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE qx_")}
    described = {name.removesuffix("_total") for name in metrics_in(PAGE.read_text())}
    assert {name.removesuffix("_total") for name in families} <= described
    assert set(re.findall(r'fate="([^"]+)"', RULES.read_text())) <= set(re.findall(r'fate="([^"]+)"', told))


@PROMTOOL
def test_what_a_reaper_tells_is_well_formed(told: str) -> None:
    done = promtool("check", "metrics", text=told)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@PROMTOOL
def test_the_rules_are_well_formed(tmp_path: Path) -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "alerts.yml"
    broken.write_text(RULES.read_text().replace("max(qx_runs_pending)", "max(qx_runs_pending"))
    assert promtool("check", "rules", broken).returncode != 0  # the check can fail


@PROMTOOL
def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    done = promtool("test", "rules", RULES.with_name("alerts.test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    tested = RULES.with_name("alerts.test.yml").read_text()
    for rule in alerts():
        found = re.findall(rf"alertname: {rule['alert']}\n( +exp_alerts)?", tested)
        assert "" in found or rule["alert"] == "QxSlowDatabase", f"{rule['alert']} is never seen not to fire"
        assert [each for each in found if each], f"{rule['alert']} is never seen to fire"
    for file in RULES.parent.iterdir():
        text = file.read_text()
        (tmp_path / file.name).write_text(text.replace("qx_database_up == 0", "qx_database_up == 2"))
    assert promtool("test", "rules", tmp_path / "alerts.test.yml").returncode != 0  # the test can fail


@PROMTOOL
def test_the_queries_of_the_dashboard_are_well_formed(tmp_path: Path) -> None:
    rules = [{"record": f"q{i}", "expr": query.replace("$__rate_interval", "5m")} for i, query in enumerate(queries())]
    assert len(rules) > 12
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "next"}
        assert rule["annotations"]["summary"].endswith(".")


def test_the_dashboard_is_whole() -> None:
    found = json.loads(DASHBOARD.read_text())
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    boxes = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    cells = [(column, row) for x, y, w, h in boxes for column in range(x, x + w) for row in range(y, y + h)]
    assert len(cells) == len(set(cells))  # none lies over another
    assert max(column for column, _ in cells) < 24
    for panel in panels:
        assert panel["description"]
        assert {each["refId"] for each in panel["targets"]} == {chr(65 + i) for i in range(len(panel["targets"]))}
    names = {each["name"] for each in found["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) <= {*names, "__rate_interval"}
