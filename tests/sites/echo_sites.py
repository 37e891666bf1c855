"""Doubles of a run and a site for the tests of the engine: installed beside the product, allowed by the tests' kits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from fedcmp.errors import FedcmpError
from fedcmp.sites.nvflare.jobs import FlareCourier, RoundsController, SiteExecutor
from fedcmp.sites.nvflare.kits import Classes

CLASSES = Classes("echo_sites.EchoController", "echo_sites.EchoExecutor")


class Echo:
    """Answers ``name: request``; a request "sleep N" takes N seconds, "die" ends the worker, "fail" raises."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        (folder / "worker.pid").write_text(str(os.getpid()))

    def handle(self, request: bytes) -> bytes:
        words = request[:40].split()
        if words[:1] == [b"sleep"]:
            time.sleep(float(words[1]))
        if words[:1] == [b"die"]:
            os.kill(os.getpid(), 9)
        if words[:1] == [b"fail"]:
            raise ValueError("told to fail")
        if words[:1] == [b"big"]:
            return request[::-1]
        return f"{self.name}: ".encode() + request


class EchoExecutor(SiteExecutor):
    def open_site(self, folder: Path) -> Echo:
        return Echo(folder)


class EchoController(RoundsController):
    """Asks what ``asks.json`` of the run says: a list of [{site: text}, timeout]; notes answers and times.

    Between asks it waits for a file ``go-N`` if ``asks.json`` lists N under "wait".
    """

    def coordinate(self, courier: FlareCourier, stop: Callable[[], bool]) -> None:
        script = json.loads((self._run / "asks.json").read_text())
        for i, (requests, timeout) in enumerate(script["asks"]):
            while i in script.get("wait", []) and not (self._run / f"go-{i}").exists() and not stop():
                time.sleep(0.1)
            if stop():
                raise FedcmpError("stopped")
            t0 = time.time()
            asked = {site: text.encode() for site, text in requests.items()}
            answers = [[site, answer.decode(), time.time() - t0] for site, answer in courier.ask(asked, timeout)]
            with open(self._run / "answers.jsonl", "a") as file:
                file.write(json.dumps(answers) + "\n")
