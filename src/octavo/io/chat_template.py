"""Conversations to tokens through a model's own template, which is untrusted code.

The environment is the one templates are written for (transformers 5): sandboxed Jinja with
trim_blocks and lstrip_blocks, loop controls, `{% generation %}`, an unescaped `tojson`,
`raise_exception`, `strftime_now`, and guarded `dict` and `namespace`.

Control tokens spelled in what a user supplied are text and stay text: `ForgeryGuard` marks them
before rendering and tells them apart after it, so nobody can forge a turn of the conversation.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from octavo.core.errors import TokenizerError
from octavo.io.forgery import forgery_guard

if TYPE_CHECKING:
    import jinja2

    from octavo.io.template_sandbox import Sandbox
    from octavo.io.tokenizer import Tokenizer

_MOST_INDENT = 64
_REMEDY = " (`octavo run --raw` leaves the template out)"
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation; no begin token is added to what the template writes.

    `variables` are further values for the template (such as enable_thinking). Raises TokenizerError
    when the model has no template, or the template fails or refuses the conversation.
    """
    template = template_of(tokenizer)
    guard = forgery_guard(_control_tokens(tokenizer, template))
    text = render_text(
        template,
        guard.mark(messages),
        tools=guard.mark(tools),
        documents=guard.mark(documents),
        add_generation_prompt=add_generation_prompt,
        variables={**guard.mark(dict(variables or {})), **tokenizer.named_tokens},
    )
    return _encode(tokenizer, guard.pieces(text))


def _encode(tokenizer: Tokenizer, pieces: Iterable[tuple[str, bool]]) -> list[int]:
    ids: list[int] = []
    for piece, forged in pieces:
        if forged:
            ids += tokenizer.encode_plain(piece)
        elif ids:
            ids += tokenizer.encode_continuation(piece)
        else:
            ids += tokenizer.encode(piece, add_special=False, parse_special=True)
    return ids


def template_of(tokenizer: Tokenizer) -> str:
    """The model's template. Raises TokenizerError when it has none (a base model)."""
    if tokenizer.chat_template is None:
        raise TokenizerError(
            "this model has no chat template: it is a base model, which continues text; "
            "give it a plain prompt (octavo run), or use an instruction-tuned model"
        )
    return tokenizer.chat_template


def render_text(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The rendered text, equal to `apply_chat_template(tokenize=False)` of transformers 5.

    Control tokens in user text are not told apart here: use `render_chat` for a model's input.
    Raises TokenizerError for a template that does not compile, fails, refuses, or grows too large.
    """
    values = {
        **_plain(variables or {}),
        "messages": [_with_reasoning(_plain(message)) for message in _checked(messages)],
        "tools": _plain(tools),
        "documents": _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    compiled, sandbox = _compiled(template)
    sandbox.budget.renew()
    return _rendered(compiled, values)


def _rendered(template: jinja2.Template, values: dict[str, Any]) -> str:
    import jinja2

    try:
        return template.render(**values)
    except jinja2.TemplateError as error:
        raise TokenizerError(
            f"the chat template refused this conversation: {error}{_REMEDY}"
        ) from error
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"the chat template failed: {error}{_REMEDY}") from error
    except (RecursionError, MemoryError) as error:
        raise TokenizerError(
            f"the chat template needs too much memory or recursion{_REMEDY}"
        ) from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> tuple[jinja2.Template, Sandbox]:
    import jinja2

    sandbox = _environment()
    try:
        return sandbox.from_string(template), sandbox
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise TokenizerError(f"the chat template does not compile: {error}{_REMEDY}") from error


def _environment() -> Sandbox:
    from octavo.io.template_sandbox import Sandbox

    environment = Sandbox()
    environment.filters["tojson"] = _tojson
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MOST_INDENT):
        raise TokenizerError(f"the chat template asks tojson for an indent of {indent!r}")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _checked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TokenizerError(
                f"message {i} is a {type(message).__name__}, not an object with role and content"
            )
    return messages


def _plain(value: Any) -> Any:
    """A copy made of JSON types only: nothing with methods that the sandbox has never seen."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    raise TokenizerError(f"a {type(value).__name__} can't be given to a chat template: use JSON")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Templates read the reasoning of an answer under different names: fill those they read."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def template_literals(tokenizer: Tokenizer) -> str:
    """What the model's template itself writes or looks for, "" without a template: it tells how the
    model marks calls and thoughts."""
    return "" if tokenizer.chat_template is None else _literal_text(tokenizer.chat_template)


def _control_tokens(tokenizer: Tokenizer, template: str) -> tuple[str, ...]:
    """Special tokens, and added ones that the template itself writes (such as <tool_call>)."""
    literal = _literal_text(template)
    special = tokenizer.special_ids
    return tuple(
        text
        for text, i in tokenizer.added_tokens.items()
        if text and (i in special or (text in literal and not text.isspace()))
    )


@lru_cache(maxsize=16)
def _literal_text(template: str) -> str:
    import jinja2
    from jinja2 import nodes

    try:
        tree = _environment().parse(template)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TokenizerError(f"the chat template does not compile: {error}{_REMEDY}") from error
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(texts)
