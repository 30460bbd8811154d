"""A headless ComfyUI of our own: isolated folders, a free port, this pack and none that was not asked for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .start import PACK

STARTUP = 180.0  # seconds


class ServerError(RuntimeError):
    """The server did not start, or refused or failed a prompt."""


class Server:
    """Context manager: starts ComfyUI on the CPU with its own folders, stops it on exit.

    pack: what is linked into custom_nodes, None for nothing. base: a folder to use as ComfyUI's, which stays; else one is
    made and removed.
    """

    def __init__(self, comfyui: Path, pack: Path | None = PACK, options: Sequence[str] = (), base: Path | None = None):
        self.comfyui, self.pack, self.options, self._kept = comfyui, pack, options, base

    def __enter__(self) -> Server:
        self._folder = tempfile.TemporaryDirectory(prefix="highlight-comfyui-")
        self.base = self._kept or Path(self._folder.name)
        (self.base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            (self.base / "custom_nodes" / "highlight-diffusion").symlink_to(self.pack, target_is_directory=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = self.base / "server.log"
        command = [
            sys.executable, "main.py", "--cpu", "--base-directory", str(self.base), "--port", str(self.port),
            "--database-url", f"sqlite:///{self.base}/db", "--disable-api-nodes", *self.options,
        ]  # fmt: skip
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=self.comfyui, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _wait(self) -> None:
        end = time.monotonic() + STARTUP
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI stopped while starting:\n{self.tail()}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        raise ServerError(f"ComfyUI did not answer within {STARTUP:.0f} s:\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def open(self, path: str, data: bytes | None = None) -> bytes:
        """What the server answers to a GET, or to a POST of `data`. Raises urllib's errors."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for us
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with opener.open(request, timeout=60) as response:
            return response.read()

    def get(self, path: str) -> Any:
        return json.loads(self.open(path))

    def post(self, prompt: dict, client: str = "") -> str:
        """Queue an API prompt, for a client by its id; returns the prompt's id. Raises ServerError, with the
        server's words, when it is refused."""
        try:
            body = json.dumps({"prompt": prompt, "client_id": client or uuid.uuid4().hex}).encode()
            return json.loads(self.open("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ServerError(error.read().decode()) from None

    def run(self, prompt: dict, timeout: float = 300.0, client: str = "") -> dict:
        """Queue an API prompt and wait for it: node id -> its outputs. Raises ServerError when it fails."""
        return self.result(self.post(prompt, client), timeout)

    def result(self, prompt_id: str, timeout: float = 300.0) -> dict:
        """Wait for a queued prompt: node id -> its outputs. Raises ServerError when it fails."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                if entry["status"]["status_str"] != "success":
                    messages = [data for name, data in entry["status"]["messages"] if name == "execution_error"]
                    raise ServerError(messages[0]["exception_message"] if messages else json.dumps(entry["status"]))
                return entry["outputs"]
            time.sleep(0.05)
        raise ServerError(f"the prompt took longer than {timeout:.0f} s:\n{self.tail()}")

    def path_of(self, image: dict) -> Path:
        """Where the server wrote an image of its outputs."""
        return self.base / image["type"] / image["subfolder"] / image["filename"]
