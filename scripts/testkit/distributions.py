"""The two distributions of a checkout, built as for a release, and what is in them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .pages import CHECKOUT

CONFIGURATION = configparser.ConfigParser(interpolation=None)
CONFIGURATION.read(CHECKOUT / "setup.cfg", encoding="utf-8")
VERSION = CONFIGURATION["metadata"]["version"]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "scripts", "tests")


def copy_checkout(folder: Path) -> None:
    """Copy what is built, and nothing that building has left."""
    shutil.copytree(CHECKOUT, folder, ignore=LEFT_OUT, symlinks=True)


@dataclass
class Built:
    """The two distributions and what is in them."""

    sdist: Path
    wheel: Path

    @property
    def sdist_names(self) -> set[str]:
        """The files of the sdist."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    @property
    def wheel_names(self) -> set[str]:
        """The files of the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def metadata(self, name: str = "METADATA") -> str:
        """A file of the wheel's metadata."""
        with zipfile.ZipFile(self.wheel) as archive:
            [path] = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
            return archive.read(path).decode()


def build(folder: Path, **addresses: str) -> Built:
    """Build both, the wheel from the sdist.

    Args:
        folder: An empty folder.
        addresses: What setup.cfg is to say of the project's addresses.
    """
    source, out = folder / "source", folder / "dist"
    copy_checkout(source)  # building writes into the source
    for name, address in addresses.items():
        text, count = re.subn(
            rf"^{name} =$", f"{name} = {address}", (source / "setup.cfg").read_text(), flags=re.MULTILINE
        )
        assert count == 1
        (source / "setup.cfg").write_text(text)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)
