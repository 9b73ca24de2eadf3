"""A conda channel without a network: as much of Python, pip and setuptools as building a package takes.

Its Python is this process's own, in the form of a virtual environment.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from rattler_build import assemble_package

SHORT = f"{sys.version_info[0]}.{sys.version_info[1]}"


def make_channel(folder: Path, work: Path) -> None:
    """Make the packages that the host section of a recipe asks for.

    Args:
        folder: The channel.
        work: An empty folder, in which they are assembled.
    """
    python = work / "python"
    (python / "bin").mkdir(parents=True)
    home = Path(sys.base_exec_prefix, "bin", f"python{SHORT}").resolve()  # of what this environment was made from
    (python / "bin" / f"python{SHORT}").symlink_to(home)
    (python / "bin" / "python").symlink_to(f"python{SHORT}")
    (python / "pyvenv.cfg").write_text(f"home = {home.parent}\ninclude-system-site-packages = false\n")
    version = ".".join(map(str, sys.version_info[:3]))
    _add(folder, "python", version, python)
    for name in ("pip", "setuptools"):
        packages = work / name / "lib" / f"python{SHORT}" / "site-packages"
        distribution = metadata.distribution(name)
        for path in distribution.files or ():
            if path.parts[0] != ".." and "__pycache__" not in path.parts:  # not its commands
                target = packages / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(path.locate()), target)
        _add(folder, name, distribution.version, work / name)


def _add(folder: Path, name: str, version: str, files: Path) -> None:
    platform = folder / "linux-64"
    platform.mkdir(parents=True, exist_ok=True)
    (folder / "noarch").mkdir(exist_ok=True)
    assemble_package(name, version, "linux-64", "0", platform, files_dir=files, detect_prefix=False)
