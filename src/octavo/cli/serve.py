"""`octavo serve`: a model behind OpenAI's API."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from octavo.cli.options import MAX_CONTEXT, Decorator, json_option, runtime_config, runtime_options
from octavo.cli.output import emit_json, human_decimal, warn
from octavo.core.errors import UserError

if TYPE_CHECKING:
    import socket

    from octavo.backends.base import RuntimeConfig
    from octavo.serve.served import ServedModel

_KV_NAMES = {"auto": "bf16", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

_KEY_VARIABLE = "OCTAVO_API_KEY"
_LOCAL = ("127.0.0.1", "::1", "localhost")


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    ctx.meta[f"octavo.serve.{param.name}"] = value
    return value


def _kept(name: str) -> Any:
    return click.get_current_context().meta[f"octavo.serve.{name}"]


def _count(name: str, low: int, high: int | None, default: int, text: str) -> Decorator:
    kind = click.IntRange(low, high)
    return click.option(name, type=kind, default=default, show_default=bool(default), help=text,
                        expose_value=False, callback=_keep)  # fmt: skip


def _words(name: str, text: str) -> Decorator:
    return click.option(name, multiple=True, help=text, expose_value=False, callback=_keep)


def _word(name: str, default: str, text: str) -> Decorator:
    return click.option(name, default=default, show_default=bool(default), help=text,
                        expose_value=False, callback=_keep)  # fmt: skip


@click.command()
@click.argument("model")
@runtime_options
@_word("--host", "127.0.0.1", "Address to listen on.")
@_count("--port", 0, 65535, 8000, "0 takes a free one.")
@_words("--served-model-name", "What clients call the model.")
@_words("--api-key", f"Keys to ask for; {_KEY_VARIABLE} is one too.")
@_count("--max-model-len", 0, MAX_CONTEXT, 0, "The same as --context.")
@_word("--kv-cache-dtype", "", "The same as --kv.")
@_count("--max-num-seqs", 1, 1024, 16, "Sequences of a step at most.")
@_count("--max-num-batched-tokens", 1, 65536, 512, "Rows of a step at most.")
@_count(
    "--kv-tokens",
    0,
    None,
    0,
    "Tokens of the KV cache. [default: --max-num-seqs contexts, in half of the memory left over]",
)
@_count("--max-waiting", 0, None, 256, "Requests that may wait, more get a 429; 0 is any number.")
@_word("--prefix-store", "", "Directory that keeps pinned prefixes over a restart.")
@_count("--max-body", 1024, None, 32 << 20, "Bytes of a request at most.")
@_words("--allowed-origins", "Origins of browsers that may call. [default: none]")
@click.option("--metrics-compat", is_flag=True, help="Show metrics under vLLM's names too.")
@json_option
def command(model: str, metrics_compat: bool, as_json: bool) -> None:
    """Serve MODEL to OpenAI's clients: chat and completions, streaming, tokens, metrics.

    It listens on this machine only, unless --host says otherwise; give --api-key then. Ctrl-C or
    SIGTERM finish what runs, and stop.
    """
    from octavo.serve.app import ServeSettings
    from octavo.serve.launch import open_socket, run, serve_model

    settings = ServeSettings(
        keys=_keys(), max_body=_kept("max_body"), origins=_kept("allowed_origins"),
        metrics_compat=metrics_compat,
    )  # fmt: skip
    listener = open_socket(_kept("host"), _kept("port"))
    with listener:
        served = serve_model(
            model, _config(), _kept("served_model_name"), _kept("max_waiting"),
            _kept("prefix_store"),
        )  # fmt: skip
        run(served, settings, listener, lambda: _announce(listener, served, as_json))


def _keys() -> tuple[str, ...]:
    keys = [*_kept("api_key"), os.environ.get(_KEY_VARIABLE, "")]
    found = tuple(key for key in keys if key)
    if not found and _kept("host") not in _LOCAL:
        click.echo("Anyone who reaches this address can use the model: give --api-key.", err=True)
    return found


def _config() -> RuntimeConfig:
    config = runtime_config()
    context, kv = _kept("max_model_len"), _kept("kv_cache_dtype")
    if context and config.context and context != config.context:
        raise UserError("--max-model-len and --context differ; give one of them")
    return dataclasses.replace(
        config,
        context=context or config.context,
        kv_format=_KV_NAMES.get(kv, kv) if kv else config.kv_format,
        max_seqs=_kept("max_num_seqs"),
        max_tokens=max(_kept("max_num_batched_tokens"), _kept("max_num_seqs")),
        kv_tokens=_kept("kv_tokens"),
    )


def _announce(listener: socket.socket, served: ServedModel, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    receipt, limits = served.ready.receipt, served.ready.limits
    warn(receipt.notes)
    if as_json:  # at once: whoever starts a server waits for this line
        url = f"http://{host}:{port}/v1"
        emit_json({"url": url, "model": served.name, "limits": limits,
                   "kv_tokens": served.kv_tokens, "receipt": receipt})  # fmt: skip
        sys.stdout.flush()
        return
    tokens, whole = served.kv_tokens, limits.context * limits.max_seqs
    of = f" of {whole}" if tokens < whole else ""
    size = human_decimal(tokens * receipt.kv_bytes_per_token)
    click.echo(
        f"{served.name} at http://{host}:{port}/v1   {receipt.isa}, {receipt.threads} threads,"
        f" {receipt.kv_format} KV, context {limits.context}, {limits.max_seqs} at once,"
        f" a cache of {tokens}{of} tokens (up to {size})"
    )
