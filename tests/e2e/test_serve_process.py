"""What an operator does to a server: kill its engine, stop it, start it twice, give it a key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.served_process import (
    ServeProcess,
    is_running,
    serve_command,
    serving,
    tiny_chat_gguf,
)

LONG = {"prompt": "hello", "max_tokens": 100, "temperature": 0, "ignore_eos": True}
AT_ONCE = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


def complete(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={**LONG, **fields}, timeout=60)


def events(url: str, **fields: Any) -> Iterator[dict[str, Any]]:
    """The events of a stream; its [DONE] is {}."""
    body = {**LONG, "stream": True, **fields}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield {} if line == "data: [DONE]" else json.loads(line[6:])


def health(url: str) -> tuple[int, dict[str, Any]]:
    response = httpx.get(f"{url}/health", timeout=60)
    return response.status_code, response.json()


def stopped_engine(server: ServeProcess) -> int:
    """The engine's process id, the process stopped: whatever runs in it stays unfinished."""
    pid = server.engine_pid()
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_killed_engine_is_back_and_nobody_hangs(model: Path) -> None:
    """Streams and whole answers end with an error that says to try again; /health says so too;
    and the new engine answers like the old one."""
    with serving(model) as server, ThreadPoolExecutor(2 * AT_ONCE) as pool:
        before = complete(server.url).json()["choices"][0]["text"]
        begun = threading.Barrier(AT_ONCE + 1)

        def stream() -> dict[str, Any]:
            source = events(server.url)
            first = next(source)
            begun.wait()
            return [first, *source][-1]

        streams = [pool.submit(stream) for _ in range(AT_ONCE)]
        pid = stopped_engine(server)
        whole = [pool.submit(complete, server.url) for _ in range(AT_ONCE)]
        os.kill(pid, signal.SIGCONT)
        begun.wait()
        pid = stopped_engine(server)
        os.kill(pid, signal.SIGKILL)
        for future in streams:
            last = future.result()
            assert last == {} or "sent again" in last["error"]["message"]
        for future in whole:
            answer = future.result()
            assert answer.status_code in (200, 503)
            if answer.status_code == 503:
                assert answer.headers["retry-after"]
                assert "status -9" in answer.json()["error"]["message"]
        status, said = health(server.url)
        assert status == 200 or "status -9" in said["reason"]
        while status != 200:
            assert (status, said["status"]) == (503, "starting")
            status, said = health(server.url)
        assert (said["status"], said["restarts"]) == ("ok", 1)
        assert server.engine_pid() != pid
        assert complete(server.url).json()["choices"][0]["text"] == before


@pytest.mark.parametrize("alternatives", [0, 3])
def test_logprobs_with_and_without_alternatives(model: Path, alternatives: int) -> None:
    with serving(model) as server:
        answer = complete(server.url, logprobs=alternatives, max_tokens=3, echo=True)
        found = answer.json()["choices"][0]["logprobs"]
        first, *others = found["top_logprobs"]
        assert first is None  # nothing predicts a prompt's first token
        # by text, and some tokens read alike
        assert all(bool(top) == bool(alternatives) for top in others)
        assert max(len(top) for top in others) <= alternatives
        assert health(server.url)[1]["restarts"] == 0


def test_sigterm_lets_what_runs_finish_and_leaves_nothing(model: Path) -> None:
    with serving(model) as server:
        engine = server.engine_pid()
        source = events(server.url)
        texts = [next(source)]
        server.process.send_signal(signal.SIGTERM)
        texts += list(source)
        assert texts.pop() == {}
        assert texts[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0
        assert not is_running(engine)
        with pytest.raises(httpx.ConnectError):
            complete(server.url)


def test_a_killed_server_takes_its_engine_with_it(model: Path) -> None:
    with serving(model) as server:
        engine = os.pidfd_open(server.engine_pid())
        server.process.kill()
        server.process.wait()
        end = threading.Event()
        threading.Thread(target=lambda: (wait_for(engine), end.set()), daemon=True).start()
        assert end.wait(60)
        os.close(engine)


def wait_for(descriptor: int) -> None:
    """Until the process behind a pidfd has ended."""
    import select

    select.select([descriptor], [], [])


def test_two_servers_on_one_port_are_one_clear_error(model: Path) -> None:
    with serving(model) as server:
        port = server.url.rpartition(":")[2]
        command = serve_command(model, "--port", port)
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"can't listen on 127.0.0.1:{port}" in second.stderr


def test_a_key_of_the_environment_is_asked_for(model: Path) -> None:
    with serving(model, OCTAVO_API_KEY="secret") as server:
        assert complete(server.url).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        allowed = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert allowed.status_code == 200
        assert "secret" not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
