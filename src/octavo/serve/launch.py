"""From a model's name to a server that listens."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import UserError
from octavo.engine.process import ProcessClient
from octavo.io.checkpoint import read_header
from octavo.io.hub import resolve_model
from octavo.io.tokenizer import load_tokenizer
from octavo.serve.app import Server, ServeSettings, create_app
from octavo.serve.heap import share_one_heap
from octavo.serve.served import ServedModel

KV_SHARE = 0.5  # of the memory left over: a cache that many use fills up in time
_DRAIN_SECONDS = 30


def serve_model(
    model: str,
    config: RuntimeConfig,
    names: Sequence[str] = (),
    max_waiting: int = 256,
    prefix_store: str = "",
) -> ServedModel:
    """Load a model in a process of its own. Raises what keeps it from loading. `prefix_store`: a
    directory that keeps pinned prefixes, or empty. A config that doesn't say how large the cache is
    gets room for all its sequences, within KV_SHARE."""
    share_one_heap()
    config = dataclasses.replace(config, kv_share=config.kv_share or KV_SHARE)
    path = resolve_model(model)
    header = read_header(path)
    tokenizer = load_tokenizer(path, header.metadata if header.kind == "gguf" else None)
    arguments = {
        "path": str(path),
        "config": dataclasses.asdict(config),
        "max_waiting": max_waiting,
        "prefix_store": prefix_store,
    }
    client = ProcessClient("octavo.engine.worker:load_native", arguments)
    ready = client.wait_ready()
    eos = tuple(dict.fromkeys((*header.eos_ids, *tokenizer.eos_ids)))
    found = tuple(names) or (Path(model).stem if "/" not in model else model,)
    return ServedModel(found, tokenizer, eos, dict(header.generation), client, ready)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"can't listen on {host}:{port}: {error.strerror}; choose another"
        ) from error
    listener.listen(1024)
    return listener


def run(
    model: ServedModel,
    settings: ServeSettings,
    listener: socket.socket,
    started: Callable[[], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C: no new requests then, those that run are finished."""
    app, server = create_app(model, settings)
    app.router.lifespan_context = _lifespan(started)
    uvicorn_server = _Uvicorn(
        uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=_DRAIN_SECONDS,
            timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10, access_log=False,
        ),
        server,
    )  # fmt: skip
    try:
        asyncio.run(uvicorn_server.serve(sockets=[listener]))
    except KeyboardInterrupt:
        pass
    finally:
        model.client.close()


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: object) -> None:
        # Uvicorn's own would raise the signal again after the last answer, and SIGTERM would end
        # the process before the engine is told to stop.
        self._server.draining = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _lifespan(
    started: Callable[[], None],
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        started()
        yield

    return lifespan
