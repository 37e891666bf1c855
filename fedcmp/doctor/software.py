"""Python and packages against the ranges of pyproject.toml."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedcmp.doctor.finding import Finding, fatal, ok, warn

INSTALL = "install fedcmp anew: pip install -c constraints.txt -e ."


def python(version: str | None = None) -> Finding:
    """Whether Python is new enough."""
    version = version or platform.python_version()
    try:
        wanted = metadata.metadata("fedcmp")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return warn(f"Python {version}; fedcmp is not installed, so its requirements are unknown", INSTALL)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return ok(f"Python {version}")
    return fatal(f"Python {version}, but fedcmp needs {wanted}", "make an environment with a newer Python")


def packages(version_of: Callable[[str], str] = metadata.version) -> list[Finding]:
    """Whether every package is there, in a version that fedcmp was made for: a line for all, or for each that is not.

    Args:
        version_of: a package's version.
    """
    try:
        required = [Requirement(text) for text in metadata.requires("fedcmp") or []]
    except metadata.PackageNotFoundError:
        return []  # Python's line says so
    found, wrong = [], []
    for one in required:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = version_of(one.name)
        except metadata.PackageNotFoundError:
            wrong.append(fatal(f"{one.name} is missing; fedcmp needs {one}", INSTALL))
            continue
        if one.specifier.contains(version, prereleases=True):
            found.append(f"{one.name} {version}")
        else:
            wrong.append(warn(f"{one.name} is {version}, outside {one.specifier}", INSTALL))
    return wrong or [ok(f"packages: {', '.join(sorted(found))}")]
