"""What a coordinator and three hospitals type, with real processes, certificates, kills, and a network that is cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hospitals import NAMES, simulate
from PIL import Image

pytest.importorskip("nvflare", reason="NVFlare is not installed: launch/check --sites installs it")
from machines import MOST, Federation

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("clinics")).up()
    yield made
    assert not any(made.end())
    assert not made.processes(""), "processes are left"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The projector of a simulation."""
    place = tmp_path_factory.mktemp
    return lambda *words, count=2: simulate(place("simulation") / "run", *words, count=count)["projector_sha256"]


def test_two_of_three_sites_have_the_bits_of_a_simulation(federation: Federation, expected: Callable[..., str]) -> None:
    said = federation.fedcmp("train", "run.yaml", "--sites", ",".join(NAMES[:2]), "run.dir=plain")
    assert "test loss" in said
    assert federation.summary("plain")["projector_sha256"] == expected()
    assert not (federation.folder / NAMES[2] / "audit.jsonl").exists(), "it was not asked"
    assert "report" in federation.fedcmp("report", "plain")
    for line in (*(f"{name} has stated what it has" for name in NAMES[:2]), "all 2 sites agree"):
        assert line in said
    site = (federation.folder / f"{NAMES[0]}.log").read_text()
    for line in (
        "connected to the coordinator",
        "began",
        "round 4 of 4: sent ",
        f"ended; its projector is in {NAMES[0]}/runs/",
    ):
        assert line in site
    assert "INFO" not in site
    assert "RuntimeWarning" not in (federation.folder / "server.log").read_text()
    (kept,) = (federation.folder / NAMES[0] / "runs").iterdir()
    Image.new("RGB", (32, 32), "grey").save(federation.folder / "picture.png")
    assert "picture.png" in federation.fedcmp("caption", str(kept), "picture.png")


def test_masked_sites_sign_with_their_certificates(federation: Federation, expected: Callable[..., str]) -> None:
    federation.fedcmp("train", "run.yaml", "--sites", ",".join(NAMES), "run.dir=masked", "federation.secure=masks")
    assert federation.summary("masked")["projector_sha256"] == expected(count=3)


def test_a_killed_site_is_left_out_and_comes_back(federation: Federation) -> None:
    run = federation.begin(
        "killed", 2, "run.yaml", "--sites", ",".join(NAMES), "--patience", "20", "federation.rounds=12"
    )
    federation.processes(f"{NAMES[1]}/kit")[-1].send_signal(signal.SIGKILL)  # the worker that trains
    assert run.wait(timeout=MOST) == 0
    accepted = [one["client/1/accepted"] for one in federation.records("killed")[1:]]
    assert accepted[0]
    assert accepted[-1], "its worker was started again"
    assert federation.summary("killed")["exit"] == "finished"


def test_a_site_that_is_started_again_at_once_is_not_waited_for(federation: Federation) -> None:
    run = federation.begin("again", 1, "run.yaml", "--sites", ",".join(NAMES), "federation.rounds=3")
    assert federation.stop(NAMES[2]) == 0
    federation.start(NAMES[2])
    assert run.wait(timeout=MOST) == 0
    assert "left out" in (federation.folder / "again.log").read_text()
    assert federation.summary("again")["rounds"] == 3


def test_a_refusal_is_told_as_it_is(federation: Federation) -> None:
    words = ("run.yaml", "--sites", ",".join(NAMES[:2]), "run.dir=refused", "aggregator=krum")
    said = federation.fedcmp("train", *words, code=1)
    assert "fedcmp: error: hospital-a does not take part: its site says: policy.methods" in said
    assert "refused Hello: policy.methods" in (federation.folder / f"{NAMES[0]}.log").read_text()


def test_a_killed_server_goes_on_to_the_same_bits(federation: Federation, expected: Callable[..., str]) -> None:
    run = federation.begin("resumed", 2, "run.yaml", "--sites", ",".join(NAMES[:2]))
    for process in federation.processes("kits/server"):
        process.send_signal(signal.SIGKILL)
    os.kill(federation.running["server"].pid, signal.SIGKILL)
    federation.running["server"].wait()
    assert run.wait(timeout=MOST) == 1
    federation.start("server")
    federation.fedcmp("train", "--resume", "resumed")
    assert federation.summary("resumed")["projector_sha256"] == expected()


def test_a_run_stops_at_the_end_of_its_round_and_goes_on(federation: Federation, expected: Callable[..., str]) -> None:
    """Of so many rounds that the signal comes long before the last one."""
    many = ("federation.rounds=40", "federation.passes=4")
    run = federation.begin("stopped", 1, "run.yaml", "--sites", ",".join(NAMES[:2]), *many)
    run.terminate()
    assert run.wait(timeout=MOST) == 0
    stopped = federation.summary("stopped")
    assert (stopped["exit"], 1 <= stopped["rounds"] < 40) == ("stopped", True)
    assert not (federation.folder / "stopped" / "stop").exists(), "it would stop what goes on"
    federation.fedcmp("train", "--resume", "stopped")
    assert federation.summary("stopped")["projector_sha256"] == expected(*many)


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


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("ip"), reason="needs root and `ip` for namespaces")
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
