"""A server in this process, over an executor that counts: each token is followed by the next."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import msgspec
import uvicorn

from octavo.backends.base import RuntimeConfig
from octavo.core.errors import OverloadedError
from octavo.engine.client import EngineLoop, Inbox
from octavo.engine.constraint import vocabulary_of
from octavo.engine.engine import Engine, with_seed
from octavo.engine.process import Health
from octavo.engine.request import Request
from octavo.engine.scheduler import Limits
from octavo.engine.stats import EngineStats
from octavo.engine.wire import Ready
from octavo.engine.worker import submit
from octavo.io.tokenizer import Tokenizer
from octavo.serve.app import ServeSettings, create_app
from octavo.serve.served import ServedModel
from support.fakes import CountingModel, FakeExecutor
from support.tokenizers import byte_level_tokenizer


class LoopClient:
    """The engine on a thread, behind the calls of `ServingClient`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.loop = engine, EngineLoop(engine)
        self.aborted: list[tuple[str, int | None]] = []
        self.state = Health("ready", 0, 1)
        self.refuse: OverloadedError | None = None

    @property
    def stats(self) -> EngineStats:
        return self.engine.stats()

    def send(self, requests: Sequence[Request], inbox: Inbox) -> tuple[Request, ...]:
        if self.refuse is not None:
            raise self.refuse
        seeded = tuple(with_seed(request) for request in requests)
        sent = msgspec.msgpack.encode(seeded)  # as over the wire
        submit(self.loop, inbox, msgspec.msgpack.decode(sent, type=tuple[Request, ...]))
        return seeded

    def abort(self, request_id: str, choice: int | None = None) -> None:
        self.aborted.append((request_id, choice))
        self.loop.abort(request_id, choice)

    def unpin(self, name: str) -> None:
        pass

    def health(self) -> Health:
        return self.state

    def wait_ready(self) -> Ready:
        raise AssertionError("this engine never dies")

    def close(self) -> None:
        self.loop.stop()


class Served:
    """A server and a client of it. Close it."""

    def __init__(
        self,
        settings: ServeSettings | None = None,
        tokenizer: Tokenizer | None = None,
        model: CountingModel | None = None,
        context: int = 256,
    ) -> None:
        self.tokenizer = tokenizer or byte_level_tokenizer()
        config = RuntimeConfig(
            max_tokens=64, max_seqs=8, context=context, block_size=4, kv_tokens=2048
        )
        model = model or CountingModel(self.tokenizer.vocab_size)
        self.executor = FakeExecutor(model, config, (512,))
        engine = Engine(
            self.executor,
            vocabulary=lambda: vocabulary_of(self.tokenizer, self.tokenizer.eos_ids),
        )
        limits = Limits(64, 8, context)
        ready = Ready(limits, model.vocab, config, self.executor.receipt(), 2)
        self.client = LoopClient(engine)
        self.model = ServedModel(
            ("tiny", "alias"), self.tokenizer, self.tokenizer.eos_ids, {}, self.client, ready, 7
        )
        self.app, self.server = create_app(self.model, settings or ServeSettings())

    def http(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://tiny", headers=headers)

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        async with self.http(**headers) as http:
            return await http.post(path, json=body)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with self.http(**headers) as http:
            return await http.get(path)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """The server on a port of this machine; gives its address."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listener.close()

    def close(self) -> None:
        self.client.close()
