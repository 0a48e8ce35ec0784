"""The bodies that the server answers with, as types: what its OpenAPI document declares.

Answers are built as plain dictionaries, since a stream's cost is counted in microseconds; tests
hold them to these types, in which every field that is sent has a place.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """A JSON object with these fields and no others. Those that may be left out default to None."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    """OpenAI's error body."""

    error: ErrorDetail


class MessagesErrorDetail(Shape):
    type: str
    message: str


class MessagesError(Shape):
    """Anthropic's error body."""

    type: Literal["error"]
    error: MessagesErrorDetail


class PromptDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class CompletionDetails(Shape):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CacheDiagnosis(Shape):
    """What the prefix cache did for a prompt; the last four only where an earlier prompt with the
    same key went on otherwise."""

    type: Literal["cache_hit", "cache_miss", "comparison_response_not_found", "unavailable"]
    octavo_reason: str
    cached_tokens: int
    reason: str | None = None
    cache_missed_tokens: int | None = None
    comparison_reusable_tokens: int | None = None
    first_diverging_token: int | None = None


class TokenLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    service_tier: None
    choices: list[ChatChoice]
    usage: Usage
    prompt_cache_diagnostics: list[CacheDiagnosis]


class PlainLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: PlainLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class Completion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[CompletionChoice]
    usage: Usage
    prompt_cache_diagnostics: list[CacheDiagnosis]


class OutputText(Shape):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class MessageItem(Shape):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[OutputText]


class ReasoningText(Shape):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Shape):
    type: Literal["reasoning"]
    id: str
    summary: list[Any]
    status: Literal["completed", "incomplete"]
    content: list[ReasoningText]


class FunctionCallItem(Shape):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class InputDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Shape):
    reasoning_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Shape):
    reason: Literal["max_output_tokens"]


class ResponseText(Shape):
    format: dict[str, Any]


class Response(Shape):
    id: str
    object: Literal["response"]
    created_at: float
    completed_at: float | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_diagnostics: CacheDiagnosis | None
    prompt_cache_key: str | None
    store: bool
    temperature: float
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    user: str | None


class DeletedResponse(Shape):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class TextBlock(Shape):
    type: Literal["text"]
    text: str


class ThinkingBlock(Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Shape):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessagesUsage(Shape):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class Message(Shape):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class CountedTokens(Shape):
    input_tokens: int


class Embedding(Shape):
    """`embedding` in base64 holds little-endian fp32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


class EmbeddingKind(Shape):
    dimensions: int
    pooling: str


class Running(Shape):
    """What runs: formats of weights, activations, keys and values; where no kernel is fast."""

    formats: list[str]
    activations: list[str]
    kv: str
    kv_tokens: int
    isa: str
    threads: int
    bytes_per_token: int
    requantized: bool
    embeddings: EmbeddingKind
    fallbacks: list[str]


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["octavo"]
    root: str
    parent: None
    max_model_len: int
    permission: list[Any]
    octavo: Running


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Shape):
    """vLLM's."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenPiece(Shape):
    id: int
    piece: str


class TokenizedContent(Shape):
    """llama.cpp's."""

    tokens: list[int] | list[TokenPiece]


class Detokenized(Shape):
    """The text under both names."""

    prompt: str
    content: str


class TokenizerInfo(Shape):
    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_id: int | None
    bos_token_id: int | None
    chat_template: str | None
    model_max_length: int


class HealthState(Shape):
    """`status` is "ok", or what keeps it from that; `reason`: of the last restart, or a failure."""

    status: str
    restarts: int
    reason: str | None


class ServerVersion(Shape):
    version: str
