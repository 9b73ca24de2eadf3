"""A JupyterLab of the test's own, to be opened in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .processes import DEADLINE, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import Page

ADDRESS = re.compile(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)")

QUIET: dict[str, dict[str, object]] = {
    "apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
}


class Lab:
    """A server of JupyterLab, with one notebook.

    Args:
        folder: A folder of its own.
        cells: The notebook's cells.
    """

    def __init__(self, folder: Path, cells: Sequence[str]) -> None:
        self.notebook = folder / "notebook.ipynb"
        self.notebook.write_text(notebook_of(cells))
        settings = folder / "settings"
        for name, value in QUIET.items():
            place = settings / "@jupyterlab" / name
            place.parent.mkdir(parents=True)
            place.write_text(json.dumps(value))
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        own = {name: str(folder / name.lower()) for name in names}
        own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
        options = [
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            "--port=0",
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly",
        ]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._said: list[str] = []
        self._is_heard = threading.Event()
        self.address = self._token = ""
        self._ear = threading.Thread(target=self._hear)
        self._ear.start()
        is_there = self._is_heard.wait(3 * DEADLINE) and self.address
        if not is_there:
            self.close()
        assert is_there, f"JupyterLab did not start:\n{''.join(self._said)}"

    def _hear(self) -> None:
        """Read what the server says to its end: it would wait for who does not read."""
        assert self._server.stderr is not None
        for line in self._server.stderr:
            self._said.append(line)
            if not self.address and (found := ADDRESS.search(line)) is not None:
                self.address, self._token = found[1], found[2]
                self._is_heard.set()
        self._is_heard.set()

    def open(self, page: Page) -> None:
        """Open the notebook, and wait until its kernel is there."""
        page.goto(f"{self.address}/lab/tree/{self.notebook.name}?token={self._token}")
        self.wait_until_ready(page)

    def wait_until_ready(self, page: Page) -> None:
        """Wait until the notebook is shown, and connected to a kernel."""
        page.wait_for_function(_IS_READY)

    def command(self, page: Page, name: str, **arguments: Any) -> None:
        """Have JupyterLab carry out a command."""
        page.evaluate(
            "([name, arguments]) => { window.jupyterapp.commands.execute(name, arguments) }", [name, arguments]
        )

    def save(self, page: Page) -> None:
        """Save the notebook."""
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    @property
    def kernel(self) -> str:
        """The id of the notebook's kernel."""
        [found] = self._ask("GET", "kernels")
        return str(found["id"])

    def restart_kernel(self) -> None:
        """Restart the kernel, as JupyterLab does after its question whether one is sure."""
        self._ask("POST", f"kernels/{self.kernel}/restart")

    def _ask(self, method: str, path: str) -> Any:
        headers = {"Authorization": f"token {self._token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return json.loads(answer.read() or b"null")

    def close(self) -> None:
        """End it, with its kernels."""
        started = psutil.Process(self._server.pid).children(recursive=True)
        self._server.terminate()
        self._ear.join(DEADLINE)
        self._server.wait(DEADLINE)
        if self._server.stderr is not None:
            self._server.stderr.close()
        for process in started:
            wait_for_end(process)


def notebook_of(cells: Sequence[str]) -> str:
    """A notebook with these cells, as a file has it."""
    import nbformat  # here: it takes seconds, of every worker that collects the tests

    api: Any = nbformat
    made = api.v4.new_notebook(cells=[api.v4.new_code_cell(code) for code in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return str(api.writes(made))


_IS_READY = """() => {
  const app = window.jupyterapp;
  const panel = app && app.shell.currentWidget;
  const context = panel && panel.sessionContext;
  const kernel = context && context.session && context.session.kernel;
  return !!(kernel && kernel.connectionStatus === "connected" && panel.content && panel.content.widgets.length);
}"""
