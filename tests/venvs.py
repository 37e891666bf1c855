"""A Python of its own, in front of the packages of this one: what is installed there comes first."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def make_python(folder: Path) -> Path:
    """Makes the environment and returns its interpreter. What is editable here is not seen there."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    behind = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "behind.pth").write_text("".join(f"{path}\n" for path in sorted(behind)))
    return python


def install(python: Path, *words: str) -> str:
    """Installs with this Python's pip into another; the last line of what went wrong, or nothing."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""
