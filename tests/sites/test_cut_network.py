"""A coordinator and hospitals on machines of their own (network namespaces), one of which is cut off for a minute."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hospitals import NAMES, simulate

pytest.importorskip("nvflare", reason="NVFlare is not installed: launch/check --sites installs it")
from machines import MOST, Federation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="needs root and `ip` for namespaces"),
]
HOST = "fedcmp.example.org"
CUT = 60
"""Seconds without a network."""


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[dict[str, str]]:
    """The namespace of the coordinator ("") and of each hospital."""
    spaces = {name: f"fedcmp{place}" for place, name in enumerate(("", *NAMES))}
    try:
        ip("link add fedcmp-lan type bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network can be made here: {error.stderr.decode().strip()}")
    try:
        ip("link set fedcmp-lan up")
        for place, space in enumerate(spaces.values(), 1):
            ip(f"netns add {space}")
            ip(f"link add {space}-lan type veth peer name eth0 netns {space}")
            ip(f"link set {space}-lan master fedcmp-lan up")
            ip(f"-n {space} addr add 10.99.0.{place}/24 dev eth0")
            ip(f"-n {space} link set eth0 up")
            ip(f"-n {space} link set lo up")
            hosts = Path("/etc/netns") / space / "hosts"
            hosts.parent.mkdir(parents=True, exist_ok=True)
            hosts.write_text(f"127.0.0.1 localhost\n10.99.0.1 {HOST}\n")
        yield spaces
    finally:
        for space in spaces.values():
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
        ip("link del fedcmp-lan")


def test_a_site_that_is_cut_off_for_a_minute_goes_on(machines: dict[str, str], tmp_path: Path) -> None:
    federation = Federation(tmp_path, HOST, lambda name: ["ip", "netns", "exec", machines[name]]).up()
    try:
        run = federation.begin("cut", 2, "run.yaml", "--sites", ",".join(NAMES[:2]))
        heard = subprocess.run(
            ["ip", "netns", "exec", machines[""], "ss", "-ltnH"], capture_output=True, text=True, check=True
        ).stdout  # fmt: skip
        assert all("10.99.0.1]" in line or "127.0.0.1" in line for line in heard.splitlines()), heard
        ip(f"link set {machines[NAMES[1]]}-lan down")
        time.sleep(CUT)
        assert run.poll() is None
        ip(f"link set {machines[NAMES[1]]}-lan up")
        assert run.wait(timeout=MOST) == 0
    finally:
        federation.end()
    summary = federation.summary("cut")
    assert summary["updates_left_out"] == 0
    assert summary["projector_sha256"] == simulate(tmp_path / "simulation")["projector_sha256"]
