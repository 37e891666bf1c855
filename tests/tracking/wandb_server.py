"""As much of a W&B server as the tests need: it takes runs and their history, and says where a run stands."""

from __future__ import annotations

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ME = {"id": "u", "entity": "me", "username": "me", "email": "", "admin": False, "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    """Runs by id: the history as lines by their offset, which is how W&B sends it, and exit codes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.exit_codes: dict[str, list[int]] = {}
        self.asked = 0
        self.takes_files = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def steps(self, run_id: str) -> list[tuple[int, int]]:
        """(step, round) of each line."""
        lines = self.history[run_id]
        return [(lines[offset]["_step"], lines[offset]["round"]) for offset in sorted(lines)]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        run_id, project = given.get("name"), {"id": "p", "name": given.get("project"), "entity": {"name": "me"}}
        if operation == "Viewer":
            return {"viewer": ME}
        if operation == "UpsertBucket":
            bucket = {"id": "b", "name": run_id, "displayName": run_id, "config": given.get("config")}
            return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": True}}
        if operation == "RunResumeStatus":
            lines = self.history.get(str(run_id))
            if not lines:
                return {"model": None}
            last = json.dumps(lines[max(lines)])
            status = {"summaryMetrics": last, "historyTail": json.dumps([last]), "historyLineCount": len(lines)}
            empty = {"eventsTail": "[]", "config": "{}", "logLineCount": 0, "eventsLineCount": 0, "tags": []}
            bucket = {"id": "b", "name": run_id, "displayName": "d", "wandbConfig": '{"t": 1}', **status, **empty}
            return {"model": {**project, "bucket": bucket}}
        return {}

    def take(self, run_id: str, sent: dict[str, Any]) -> None:
        lines = self.history.setdefault(run_id, {})
        part = (sent.get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        lines |= {part["offset"] + place: json.loads(line) for place, line in enumerate(part["content"])}
        if sent.get("complete"):
            self.exit_codes.setdefault(run_id, []).append(sent["exitcode"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        self.server.asked += 1
        if self.path.endswith("/graphql"):
            asked = json.loads(content)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            data = self.server.answer(operation[1] if operation else "", asked.get("variables") or {})
            self._reply({"data": data} if data else {"errors": [{"message": "not known here"}]})
        elif self.path.endswith("/file_stream") and self.server.takes_files:
            self.server.take(self.path.split("/")[-2], json.loads(content))
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({}, 503 if self.path.endswith("/file_stream") else 200)

    def _reply(self, body: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
