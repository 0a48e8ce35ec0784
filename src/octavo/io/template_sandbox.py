"""The sandbox for chat templates: Jinja's immutable one, with a budget for time and memory.

Every loop turn, macro call and written character is paid from the budget, and operations that make
a large value out of small ones are checked beforehand: a hostile template ends with an error.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

# Far above any real conversation (a million tokens are about four million characters).
BUDGET = 16 << 20
_MOST_PRODUCT = 1 << 30  # letters of a text times letters of its replacement
_TURN = 16  # what a loop turn or macro call costs: a million of them take a few seconds
_WIDE_FIELD = re.compile(r"\d{7,}")


class _Budget(threading.local):
    """What is left for the rendering that this thread is doing."""

    left = BUDGET

    def renew(self) -> None:
        self.left = BUDGET

    def spend(self, amount: int) -> str:
        self.left -= amount
        if self.left < 0:
            raise SecurityError(f"it takes more than {BUDGET} steps and characters")
        return ""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which templates of transformers 5 render alike."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        self.budget = _Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, _Metering, jinja2.ext.loopcontrols],
            finalize=self._paid,
        )
        self.globals["raise_exception"] = _raise
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # makes text without bound, and none that a model is to read
        for name in ("center", "indent", "format", "replace", "join"):
            self.filters[name] = _limited(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _meter(tree, self.extensions[_Metering.identifier])
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_size(_items(left) * _count(right), _items(right) * _count(left))
        elif operator == "+":
            _check_size(_items(left) + _items(right))
        elif operator == "**":
            _check_size(_bits(left) * _count(right))
        elif isinstance(left, str):
            _check_fields(left)
            _check_arguments(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **values: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox has wrapped str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_fields(owner if method.__name__ in ("format", "format_map") else "")
            _check_arguments(owner, (*args, *values.values()))
        return super().call(__context, __obj, *args, **values)

    def _paid(self, value: Any) -> Any:
        self.budget.spend(_items(value))
        return value


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks an answer's text; its content is rendered."""

    tags = frozenset(["generation"])

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Macro) -> str:
        return caller()


class _Metering(jinja2.ext.Extension):
    """The functions that a metered template calls; no name of a template can hide them."""

    environment: Sandbox

    def spend(self, amount: int) -> str:
        return self.environment.budget.spend(amount)

    def concat(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


def _meter(tree: nodes.Template, extension: jinja2.ext.Extension) -> None:
    """Let every loop turn and macro call pay for itself and the literal text in it."""
    for block in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        literal = sum(len(data.data) for data in block.find_all(nodes.TemplateData))
        payment = extension.call_method("spend", [nodes.Const(_TURN + literal)])
        block.body.insert(0, nodes.ExprStmt(payment).set_lineno(block.lineno))
    for parent in list(tree.find_all(nodes.Node)):
        _replace_concat(parent, extension)


def _replace_concat(parent: nodes.Node, extension: jinja2.ext.Extension) -> None:
    for name, value in list(parent.iter_fields()):
        if isinstance(value, nodes.Concat):
            setattr(parent, name, extension.call_method("concat", value.nodes))
        elif isinstance(value, list):
            value[:] = [
                extension.call_method("concat", item.nodes)
                if isinstance(item, nodes.Concat)
                else item
                for item in value
            ]


class _Namespace(Namespace):
    """A namespace whose names can't begin with an underscore, where Python's internals are."""

    def __init__(*args: Any, **values: Any) -> None:
        attributes = dict(*args[1:], **values)
        for name in attributes:
            _check_public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` without the type itself."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _limited(method: Callable[..., Any]) -> Callable[..., Any]:
    from functools import wraps

    @wraps(method)
    def limited(*args: Any, **values: Any) -> Any:
        kept = [list(value) if isinstance(value, Iterator) else value for value in args]
        given = [value for value in (*kept, *values.values()) if not _is_context(value)]
        if given and isinstance(given[0], str) and method.__name__ == "do_format":
            _check_fields(given[0])
        _check_arguments("", given)
        return method(*kept, **values)

    return limited


def _is_context(value: Any) -> bool:
    return isinstance(value, (Context, nodes.EvalContext, jinja2.Environment))


def _check_arguments(text: Any, others: Any) -> None:
    """Refuse widths beyond the budget, and a text put into another more often than it allows.

    replace(old, new) and join(items) write the longest text at most once per item or letter.
    """
    values = [text, *others]
    lists = [value for value in values if isinstance(value, (list, tuple))]
    joined = sum(_items(item) for value in lists for item in value)
    _check_size(joined, *(_count(value) for value in values))
    longest = sorted(_items(value) for value in values)[-2:]
    if len(longest) == 2 and longest[0] * longest[1] > _MOST_PRODUCT:
        raise SecurityError("it multiplies one long text by another")


def _check_fields(text: str) -> None:
    if _WIDE_FIELD.search(text):
        raise SecurityError("it formats a field of more than a million characters")


def _check_size(*sizes: int) -> None:
    if max(sizes) > BUDGET:
        raise SecurityError(f"it makes a value of more than {BUDGET} characters or items")


def _items(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _count(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 1


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold the name {name!r}: it begins with _")


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
