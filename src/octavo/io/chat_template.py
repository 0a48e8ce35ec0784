"""Conversations to tokens through a model's own template, which is untrusted code.

The environment is the one templates are written for (transformers 5): sandboxed Jinja with
trim_blocks and lstrip_blocks, loop controls, `{% generation %}`, an unescaped `tojson`,
`raise_exception`, `strftime_now`, and guarded `dict` and `namespace`.

Control tokens spelled in what a user supplied are text and stay text. Before rendering they are
wrapped in two private-use characters; after rendering, what is wrapped is encoded letter by letter
and everything else normally. The template's own control tokens are untouched, and a user can't
forge a turn of the conversation. The wrapping is visible to the template: one that compares or cuts
at such a token does not find it in user text, which is the point.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from octavo.core.errors import TokenizerError

if TYPE_CHECKING:
    import jinja2

    from octavo.io.template_sandbox import Sandbox
    from octavo.io.tokenizer import Tokenizer

_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MOST_INDENT = 64
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
    guard = _control_pattern(_control_tokens(tokenizer, template))
    text = render_text(
        template,
        _marked(messages, guard),
        tools=_marked(tools, guard),
        documents=_marked(documents, guard),
        add_generation_prompt=add_generation_prompt,
        variables={**_marked(dict(variables or {}), guard), **tokenizer.named_tokens},
    )
    return _encode_marked(tokenizer, text)


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
    compiled = _compiled(template)
    compiled.environment.budget.renew()
    return _rendered(compiled, values)


def _rendered(template: jinja2.Template, values: dict[str, Any]) -> str:
    import jinja2

    try:
        return template.render(**values)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refused this conversation: {error}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"the chat template failed: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise TokenizerError("the chat template needs too much memory or recursion") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(template)
    except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
        raise TokenizerError(f"the chat template does not compile: {error}") from error


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
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else [
            _plain(item) for item in value
        ]
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
        raise TokenizerError(f"the chat template does not compile: {error}") from error
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(texts)


@lru_cache(maxsize=16)
def _control_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that a token wins over the tokens it contains; nothing matches for none.
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _marked(value: Any, guard: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        # Markers already in the text would let it end a wrapping early.
        clean = value.replace(_OPEN, "").replace(_CLOSE, "")
        return guard.sub(lambda match: f"{_OPEN}{match.group()}{_CLOSE}", clean)
    if isinstance(value, Mapping):
        return {_marked(key, guard): _marked(item, guard) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(item, guard) for item in value]
    return value


def _encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = []
    for piece, wrapped in _pieces(text, tokenizer.added_tokens):
        if wrapped:
            ids += tokenizer.encode_plain(piece)
        elif ids:
            ids += tokenizer.encode_continuation(piece)
        else:
            ids += tokenizer.encode(piece, add_special=False, parse_special=True)
    return ids


def _pieces(text: str, tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """(text, wrapped) in order. A marker whose partner a template cut off only separates."""
    guard = _control_pattern(tuple(tokens)).pattern
    parts = re.split(f"{_OPEN}({guard}){_CLOSE}|[{_OPEN}{_CLOSE}]", text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]
