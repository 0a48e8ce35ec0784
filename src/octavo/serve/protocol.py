"""What clients send: the fields of OpenAI's API, and those that vLLM's and llama.cpp's users add.

Unknown fields are kept and ignored, as clients expect; a wrong type is a 400 that names the field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from octavo.engine.request import MAX_CHOICES, MAX_LOGPROBS

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=16 << 20)]

# What the OpenAPI document says of fields that are checked behind their types, where an error can
# name the remedy.
_Penalty = Annotated[float | None, Field(json_schema_extra={"minimum": -2, "maximum": 2})]
_Positive = Annotated[float | None, Field(json_schema_extra={"exclusiveMinimum": 0})]
_AtLeast0 = Annotated[float | None, Field(json_schema_extra={"minimum": 0})]
_Share = Annotated[float | None, Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})]
_Cut = Annotated[float | None, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
_Size = Annotated[int | None, Field(json_schema_extra={"minimum": 1, "maximum": 2**31 - 1})]
_Choices = Annotated[int | None, Field(json_schema_extra={"minimum": 1, "maximum": MAX_CHOICES})]
_Top = Annotated[int | None, Field(json_schema_extra={"minimum": 0, "maximum": MAX_LOGPROBS})]
_Biases = Annotated[
    dict[str, float] | None, Field(json_schema_extra={"propertyNames": {"pattern": r"^\d{1,10}$"}})
]


def parts(*kinds: str) -> dict[str, Any]:
    """JSON schema of a content field: a text, or parts of these kinds that hold texts."""
    properties = {"type": {"enum": list(kinds)}, "text": {"type": "string"}}
    part = {"type": "object", "properties": properties, "required": ["type", "text"]}
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}


def message_schema(content: dict[str, Any], *roles: str) -> dict[str, Any]:
    """JSON schema of a message."""
    properties = {"role": {"enum": list(roles)}, "content": content}
    return {"type": "object", "properties": properties, "required": ["role", "content"]}


def listed(item: dict[str, Any]) -> WithJsonSchema:
    """What the document says of a list whose items are read by hand."""
    return WithJsonSchema({"type": "array", "items": item, "minItems": 1})


_MESSAGE = message_schema(parts("text"), "system", "developer", "user", "assistant", "tool")
ChatMessages = Annotated[list[dict[str, Any]], listed(_MESSAGE)]


class Body(BaseModel):
    """A JSON object whose unknown fields are ignored and whose types are not bent."""

    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class PromptCacheOptions(Body):
    """`mode` "explicit" writes only up to breakpoints; `ttl` is how long at least, "30m"."""

    mode: Literal["implicit", "explicit"] = "implicit"
    ttl: str = "30m"


class Sampling(Body):
    """Fields that chat and plain completions share. None: the model's own suggestion."""

    model: str | None = None
    frequency_penalty: _Penalty = None
    presence_penalty: _Penalty = None
    repetition_penalty: _Positive = None
    logit_bias: _Biases = None
    n: _Choices = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: _AtLeast0 = None
    top_p: _Share = None
    top_k: int | None = None
    min_p: _Cut = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    include_stop_str_in_output: bool = False
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None


class ChatRequest(Sampling):
    messages: ChatMessages
    max_tokens: _Size = None
    max_completion_tokens: _Size = None
    logprobs: bool | None = None
    top_logprobs: _Top = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = None
    logprobs: _Top = None
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None


class TokenizeRequest(Body):
    """vLLM's dialect has `prompt` or `messages`, llama.cpp's has `content`."""

    model: str | None = None
    prompt: Text | None = None
    messages: ChatMessages | None = None
    content: Text | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[Count]
