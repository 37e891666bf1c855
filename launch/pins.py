"""The work of launch/audit: constraints.txt beside what is installed, and beside what is known of its holes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("pypi", "osv")
"""Of pip-audit, in the order in which they are asked."""
TOOL = ROOT / ".cache" / "audit"
BASE = {"pip", "setuptools", "wheel"}
"""They come with an environment."""


class Versions(NamedTuple):
    """What is wrong with the pins."""

    different: list[str]
    """Installed in another version than the pinned one."""
    loose: list[str]
    """Needed, and not pinned."""


class Advice(NamedTuple):
    """What a service said."""

    audited: int
    holes: list[str]
    unknown: list[str]
    """Packages that the service does not know."""


def read_pins(text: str) -> dict[str, Requirement]:
    """The lines of constraints.txt that hold for this Python, by name.

    >>> list(read_pins("a==1 # why\\nB_c==2; python_version < '3'\\n"))
    ['a']
    """
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins if pin.marker is None or pin.marker.evaluate()}


def needed(package: str, extras: Sequence[str]) -> set[str]:
    """All that a package needs here, and what that needs, as far as it is installed."""
    found: set[str] = set()
    waiting = [(package, tuple(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            one = Requirement(line)
            if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                continue
            key = (canonicalize_name(one.name), tuple(sorted(one.extras)))
            found.add(key[0])
            if key not in seen:
                seen.add(key)
                waiting.append(key)
    return found - {canonicalize_name(package)} - BASE


def compare(pins: Mapping[str, Requirement], installed: Mapping[str, str], wanted: set[str]) -> Versions:
    """The pins beside the installed versions; a build tag (``+cpu``) is no other version.

    >>> compare(read_pins("a==1\\nb==2"), {"a": "1+cpu", "b": "3"}, {"a", "b", "c"})
    Versions(different=['b 3, pinned ==2'], loose=['c'])
    """
    different = [
        f"{name} {installed[name]}, pinned {pin.specifier}"
        for name, pin in sorted(pins.items())
        if name in installed and not pin.specifier.contains(installed[name], prereleases=True)
    ]
    return Versions(different, sorted(wanted - pins.keys()))


def read_advice(report: Mapping[str, Any]) -> Advice:
    """What pip-audit's JSON says. It ends with 0 where it knew nothing at all, too: that is no clean bill.

    >>> known = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    >>> read_advice({"dependencies": [known, {"name": "b", "skip_reason": "Dependency not found on PyPI"}]})
    Advice(audited=1, holes=['a 1: PYSEC-1, mended in 2'], unknown=['b'])
    """
    answers = report["dependencies"]
    known = [one for one in answers if "skip_reason" not in one]
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in known
        for hole in one["vulns"]
    ]
    return Advice(len(known), holes, [one["name"] for one in answers if "skip_reason" in one])


def ask(pins: Mapping[str, Requirement], service: str) -> Advice | str:
    """What a service knows of the pinned versions, or why it could not be asked."""
    python = TOOL / "bin" / "python"
    if not python.exists():
        venv.create(TOOL, with_pip=True)
    words = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit>=2.9"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return f"pip-audit cannot be installed: {_last(done.stderr)}"
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "pins.txt", Path(folder) / "answer.json"
        asked.write_text("".join(f"{name}{pin.specifier}\n" for name, pin in sorted(pins.items())))
        words = [str(python), "-m", "pip_audit", "-r", str(asked), "--no-deps", "--disable-pip", "-s", service]
        words += ["-f", "json", "-o", str(answer), "--progress-spinner", "off"]
        done = subprocess.run(words, capture_output=True, text=True)
        try:
            advice = read_advice(json.loads(answer.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return f"it does not answer: {_last(done.stderr)}"
    return advice if advice.audited else f"it knows none of {len(advice.unknown)} packages: a mirror in its place?"


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true", help="the versions alone: nobody is asked")
    options = parser.parse_args(arguments)
    pins = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in metadata.distributions()}
    wanted = needed("fedcmp", ["dev"])
    found = compare(pins, installed, wanted)
    print(f"{len(pins)} pins for this Python, {len(wanted)} packages needed by fedcmp[dev]")
    for what, lines in (("installed in another version", found.different), ("needed and not pinned", found.loose)):
        print(f"{len(lines) or 'none'} {what}" + "".join(f"\n  {line}" for line in lines))
    code = 1 if found.different or found.loose else 0
    if options.offline:
        print("known holes: not asked for")
        return code
    for service in SERVICES:
        advice = ask(pins, service)
        if isinstance(advice, str):
            print(f"known holes, {service}: could not be asked: {advice}")
            continue
        print(f"known holes, {service}: {len(advice.holes) or 'none'} in {advice.audited} packages")
        for line in advice.holes:
            print(f"  {line}")
        if advice.unknown:
            print(f"  not known to it: {', '.join(advice.unknown)}")
        return 1 if advice.holes else code
    print("NOT AUDITED: no advisory service could be asked. Run launch/audit where a network leads to one.")
    return code or 3


if __name__ == "__main__":
    sys.exit(main())
