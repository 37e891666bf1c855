"""A finished run is of use: captions by command, in Python and on a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from launch.processes import free_port, until
from models.tiny import save_tower
from PIL import Image

import fedcmp
from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.data.scenes import make_scene, render
from fedcmp.errors import DataError, RunFolderError
from fedcmp.federation.checkpoint import save_projector
from fedcmp.runs.baselines import train_local
from fedcmp.runs.plan import plan
from fedcmp.runs.train import train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        render(make_scene("test", "plain", number)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("picture")]


def test_captions_are_those_that_the_run_wrote(tiny_run: Path) -> None:
    run, shown = fedcmp.load_run(tiny_run), rows_of(tiny_run)
    assert len(shown) == 2
    assert run.caption([tiny_run / row["picture"] for row in shown]) == [row["generated"] for row in shown]
    assert run.config == load_config(tiny_run / "config.yaml")
    start = run.untrained()
    assert all((run.projector[name] != value).any() for name, value in start.projector.items())


def test_the_command_captions_files_and_folders_and_names_what_it_cannot_read(
    tiny_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(pictures.glob("*.png"))
    expected = fedcmp.load_run(tiny_run).caption(paths)
    capsys.readouterr()
    assert main(["caption", str(tiny_run), str(pictures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{path}\t{text}" for path, text in zip(paths, expected, strict=True)]
    (broken := tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:60])
    assert main(["caption", str(tiny_run), str(broken), str(paths[1]), "--json"]) == 1
    written = capsys.readouterr()
    assert json.loads(written.out) == {"picture": str(paths[1]), "caption": expected[1]}
    assert str(broken) in written.err
    with pytest.raises(DataError, match="nothing"):
        fedcmp.load_run(tiny_run).caption([tmp_path / "nothing.png"])


def test_feature_maps_and_transparent_pictures_are_captioned_as_they_were_trained_on(tmp_path: Path) -> None:
    tower, folder = save_tower("mobilenet", tmp_path / "tower"), tmp_path / "run"
    config = load_config(None, [*small.SMALL, f"model.tower={tower}", f"run.dir={folder}"])
    train(config)
    run, row = fedcmp.load_run(folder, ["run.device=cpu"]), rows_of(folder)[0]
    assert run.caption([folder / row["picture"]]) == [row["generated"]]
    icon = np.zeros((40, 40, 4), np.uint8)
    assert run.caption([Image.fromarray(icon)]) == run.caption([Image.new("RGB", (40, 40), "white")])
    assert any("model.tower" in note for note in plan(config).notes), "a Llava holds no feature maps"


def test_runs_that_cannot_be_used_are_named(tiny_run: Path, tmp_path: Path) -> None:
    stopped, local = Path(shutil.copytree(tiny_run, tmp_path / "stopped")), tmp_path / "local"
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps({**summary, "exit": "stopped"}))
    train_local(load_config(None, [*small.SMALL, "evaluation.test=false", f"run.dir={local}"]))
    for path, named in ((tmp_path / "nowhere", "nowhere"), (stopped, "stopped"), (local, r"model\.projector\.init")):
        with pytest.raises(RunFolderError, match=named):
            fedcmp.load_run(path)
    assert fedcmp.load_run(local, [f"model.projector.init={local}/clients/0/projector.safetensors"]).projector


def _browser(folder: Path) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1100,700",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(word)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's chromium and chromium-driver",
)
def test_the_page_captions_a_picture_that_is_dropped_on_it(tiny_run: Path, pictures: Path, tmp_path: Path) -> None:
    other, port = Path(shutil.copytree(tiny_run, tmp_path / "b")), free_port()
    run, path, place = fedcmp.load_run(tiny_run), pictures / "1.png", f"http://127.0.0.1:{port}/"
    save_projector(other / "projector.safetensors", {name: -value for name, value in run.projector.items()})
    wanted = [text for one in (run, run.untrained(), fedcmp.load_run(other)) for text in one.caption([path])]
    assert len(set(wanted)) == 3
    words = ["serve", str(tiny_run), "--beside", str(other), "--port", str(port)]
    (uploads := tmp_path / "uploads").mkdir()
    server = subprocess.Popen([sys.executable, "-m", "fedcmp", *words], env={**os.environ, "TMPDIR": str(uploads)})

    def answers() -> bool:
        assert server.poll() is None, "the server has ended"
        try:
            urllib.request.urlopen(place, timeout=5).close()
        except OSError:
            return False
        return True

    try:
        until(answers, 120)
        browser = _browser(tmp_path / "profile")
        try:
            browser.get(place)
            until(lambda: browser.find_elements("css selector", "input[type=file]"), 60)
            browser.find_elements("css selector", "input[type=file]")[0].send_keys(str(path))
            boxes = partial(browser.find_elements, "css selector", "textarea")
            until(lambda: [box.get_attribute("value") for box in boxes()] == wanted, 60)
            fetched = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
            assert fetched
            assert all(name.startswith((place, "blob:", "data:")) for name in fetched)
            assert list(uploads.rglob("*.png"))
        finally:
            browser.quit()
    finally:
        server.terminate()
        server.wait(60)
    assert not list(uploads.rglob("*.png")), "pictures that were dropped go with the page"
