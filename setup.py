"""Adds to setup.cfg what depends on the project's address: its links, and the readme as a package index shows it.

An index shows the readme without the repository around it. So links to files of the repository are made absolute; while
setup.cfg names no address, they become plain text, and pictures their descriptions.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"(?P<picture>!)?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def addresses(configuration: configparser.ConfigParser) -> dict[str, str]:
    """Return the addresses that setup.cfg names, or that follow from them, by their keys there; none without `home`."""
    given = {key: value.strip().rstrip("/") for key, value in configuration["addresses"].items() if value.strip()}
    if "home" not in given:
        if given:
            raise SystemExit("setup.cfg: the section addresses has no home; fill it in, or empty the others")
        return {}
    for key, value in given.items():
        if not value.startswith("https://"):
            raise SystemExit(f"setup.cfg: {key} in the section addresses must begin with https://, not {value!r}")
    tag = configuration["metadata"]["version"]
    home = given["home"]
    following = {"issues": f"{home}/issues", "files": f"{home}/blob/{tag}", "pictures": f"{home}/raw/{tag}"}
    return {**following, **given}


def project_urls(known: dict[str, str]) -> dict[str, str]:
    """Return the links that an index shows, by their labels."""
    if not known:
        return {}
    return {
        "Homepage": known["home"],
        "Documentation": f"{known['files']}/docs/index.md",
        "Changelog": f"{known['files']}/CHANGELOG.md",
        "Issues": known["issues"],
    }


def readme(text: str, known: dict[str, str]) -> str:
    """Return the readme as it is shown without the repository."""

    def standing_alone(link: re.Match[str]) -> str:
        picture, description, target = link["picture"] or "", link["text"], link["target"]
        if target.startswith(("https://", "http://", "#")):
            return link[0]
        if known:
            return f"{picture}[{description}]({known['pictures' if picture else 'files']}/{target})"
        return f"*{' '.join(description.split())}*" if picture else description

    return LINK.sub(standing_alone, text)


def main() -> None:
    """Build."""
    configuration = configparser.ConfigParser(interpolation=None)
    configuration.read(HERE / "setup.cfg", encoding="utf-8")
    known = addresses(configuration)
    text = (HERE / "README.md").read_text(encoding="utf-8")
    setup(long_description=readme(text, known), project_urls=project_urls(known))


main()
