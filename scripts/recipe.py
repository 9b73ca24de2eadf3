"""Builds the conda package: the sdist, and from it the package, by the recipe (`scripts/recipe`).

The recipe itself names no version: it gets setup.cfg's, as all else does.
"""

from __future__ import annotations

import argparse
import configparser
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rattler_build import Stage0Recipe, ToolConfiguration

CHECKOUT = Path(__file__).resolve().parents[1]


def build(recipe: Path, output: Path, channels: Sequence[str], *, with_tests: bool) -> list[Path]:
    """Build the recipe, whose sdist exists.

    Args:
        recipe: The recipe.
        output: Where the packages go.
        channels: Where its requirements come from.
        with_tests: Whether the package is installed and tested, for which the channels must have all that it runs with.

    Returns:
        The packages.
    """
    tool = ToolConfiguration(test_strategy="native" if with_tests else "skip")
    results = Stage0Recipe.from_file(recipe).run_build(
        tool_config=tool, output_dir=output, channels=list(channels), no_include_recipe=True
    )
    return [Path(package) for result in results for package in result.packages]


def version() -> str:
    """The version of setup.cfg."""
    configuration = configparser.ConfigParser(interpolation=None)
    configuration.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return configuration["metadata"]["version"]


def main() -> None:
    """Build, and print where the packages are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channel", action="append", metavar="URL", help="a channel (default: conda-forge)")
    parser.add_argument("--no-test", action="store_true", help="do not install the package to test it")
    arguments = parser.parse_args()
    subprocess.run([sys.executable, "-m", "build", "--sdist", str(CHECKOUT)], check=True)
    os.environ["SDIST_VERSION"] = version()
    channels = arguments.channel or ["conda-forge"]
    recipe = CHECKOUT / "recipe" / "recipe.yaml"
    for package in build(recipe, CHECKOUT / "dist" / "conda", channels, with_tests=not arguments.no_test):
        print(package)


if __name__ == "__main__":
    main()
