"""The `octavo` command: names and one-line helps here, everything else on first use.

`octavo --help` imports click and this file only. `main` turns every error into one line on stderr
(and a JSON object on stdout when `--json` was given): exit status 2 for what the user can mend, 1
for our own failures, 130 for an interrupt. OCTAVO_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from types import MappingProxyType

import click

from octavo._version import __version__
from octavo.core.errors import InternalError, OctavoError, ResourceError

COMMANDS = MappingProxyType(
    {
        "run": ("octavo.cli.run", "Answer one prompt, and say how fast and from how many bytes."),
        "chat": ("octavo.cli.chat", "Talk with a model."),
        "serve": ("octavo.cli.serve", "Serve a model to OpenAI's clients."),
        "run-batch": ("octavo.cli.run_batch", "Answer a file of requests, line by line."),
        "bench-serve": ("octavo.cli.bench_serve", "Load a server, and say what it felt like."),
        "inspect": ("octavo.cli.inspect", "Show a model's spec, tensors, formats and bytes."),
        "fit": ("octavo.cli.fit", "Say what fits into memory, and how fast it can be at most."),
        "formats": ("octavo.cli.formats", "Draw number formats: bits, range, digits, size."),
        "bench": ("octavo.cli.bench", "Measure prefill and decode speed against the memory's."),
        "eval": ("octavo.cli.eval", "Measure what compression cost: KL divergence, perplexity."),
        "compress": ("octavo.cli.compress", "Make a model smaller, and measure what that cost."),
        "methods": ("octavo.cli.methods", "Say what each compression method does and costs."),
        "distill": ("octavo.cli.distill", "Train a smaller student on what a model predicts."),
        "vocab": ("octavo.cli.vocab", "Make a vocabulary cheaper: thin, trimmed, with phrases."),
        "shrink": ("octavo.cli.shrink", "Keep the layers, heads and channels that matter most."),
        "export": ("octavo.cli.export", "Write a model for other engines."),
        "doctor": ("octavo.cli.doctor", "Check processor, limits, memory and kernels."),
    }
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
BROKEN_PIPE = 141


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is named, and lists them without importing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="octavo")
def cli() -> None:
    """Runs, compresses and measures the language model you have on the machine you have.

    \b
    octavo run smollm2-135m "What is a cache?"
    octavo bench smollm2-135m --format int4_g32
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `octavo` script: run `arguments` (sys.argv's by default), give the status.

    Never raises but for OCTAVO_DEBUG=1.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _accept_any_bytes()
    try:
        status = cli.main(words, prog_name="octavo", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (BrokenPipeError, SystemExit):  # click turns the first into the second
        return _forget_stdout()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except (click.ClickException, OctavoError) as error:
        return _report(error, words)
    except Exception as error:
        return _report(_resource(error) or _as_ours(error), words)


def _report(error: click.ClickException | OctavoError, words: Sequence[str]) -> int:
    if os.environ.get("OCTAVO_DEBUG") == "1":
        raise error
    status = error.exit_code if isinstance(error, click.ClickException) else error.exit_status
    message = " ".join(_describe(error).split())
    if "--json" in words:
        kind = type(error).__name__
        body = {"type": kind, "message": message, "exit_status": status}
        click.echo(json.dumps({"error": body}))
    click.echo(f"octavo: error: {message}", err=True)
    return status


def _accept_any_bytes() -> None:
    """What isn't text comes in as surrogates, which the tokenizer refuses by name; what the
    terminal can't show goes out as a question mark."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _resource(error: Exception) -> ResourceError | None:
    """The error of a machine that is too small, where nobody nearer said so."""
    if isinstance(error, MemoryError):
        return ResourceError(
            "there is too little memory: take a shorter --context or a smaller --format, "
            "or raise the limit (`ulimit -v`)"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return ResourceError(f"the output can't be written: {error.strerror}; make room for it")
    return None


def _as_ours(error: Exception) -> InternalError:
    """What nobody foresaw is a bug of ours, and says so in one line as well."""
    bug = InternalError(
        f"{type(error).__name__}: {error}: this is a bug of ours; "
        "please report it with what OCTAVO_DEBUG=1 shows"
    )
    bug.__cause__ = error
    return bug


def _describe(error: click.ClickException | OctavoError) -> str:
    """One sentence: click's own errors get the command that lists what there is."""
    if not isinstance(error, click.UsageError):
        return error.format_message() if isinstance(error, click.ClickException) else str(error)
    path = error.ctx.command_path if error.ctx else "octavo"
    return f"{error.format_message().rstrip('.')}: see `{path} --help`"


def _forget_stdout() -> int:
    """The reader went away: nothing more can be said, and the interpreter must not try to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
