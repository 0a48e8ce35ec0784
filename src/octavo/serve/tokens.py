"""Token endpoints, in vLLM's dialect and llama.cpp's."""

from __future__ import annotations

from typing import Any

from octavo.core.errors import RequestError
from octavo.engine.pool import POOLING
from octavo.io.tokenizer import Tokenizer
from octavo.serve.prompts import chat_prompt
from octavo.serve.protocol import ChatRequest, DetokenizeRequest, TokenizeRequest
from octavo.serve.served import ServedModel


def tokenize(body: TokenizeRequest, model: ServedModel) -> dict[str, Any]:
    model.check_name(body.model)
    tokenizer = model.tokenizer
    if body.content is not None:
        return _llama_cpp(body, body.content, tokenizer)
    if body.messages is not None:
        chat = ChatRequest(
            messages=body.messages,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt,
        )
        tokens = list(chat_prompt(tokenizer, chat)[0])
    elif body.prompt is not None:
        tokens = tokenizer.encode(body.prompt, add_special=body.add_special_tokens)
    else:
        raise RequestError("give prompt, messages or content", "prompt")
    texts = [_piece(tokenizer, token) for token in tokens] if body.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": model.context,
        "tokens": tokens,
        "token_strs": texts,
    }


def _llama_cpp(body: TokenizeRequest, content: str, tokenizer: Tokenizer) -> dict[str, Any]:
    special = body.parse_special
    tokens = tokenizer.encode(content, add_special=body.add_special, parse_special=special)
    if not body.with_pieces:
        return {"tokens": tokens}
    return {"tokens": [{"id": token, "piece": _piece(tokenizer, token)} for token in tokens]}


def _piece(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode(errors="replace")


def detokenize(body: DetokenizeRequest, model: ServedModel) -> dict[str, Any]:
    model.check_name(body.model)
    for token in body.tokens:
        if token >= model.ready.vocab:
            raise RequestError(
                f"token {token} is not of this vocabulary of {model.ready.vocab}", "tokens"
            )
    text = model.tokenizer.decode(body.tokens, skip_special=False)
    return {"prompt": text, "content": text}


def tokenizer_info(model: ServedModel) -> dict[str, Any]:
    """What remote tokenizers (lm-eval's) need to know."""
    tokenizer = model.tokenizer
    named = dict(tokenizer.named_tokens)
    eos = model.eos[0] if model.eos else None
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "bos_token": named.get("bos_token"),
        "eos_token": named.get("eos_token") or (None if eos is None else _piece(tokenizer, eos)),
        "pad_token": named.get("pad_token"),
        "eos_token_id": eos,
        "bos_token_id": tokenizer.bos_id,
        "chat_template": tokenizer.chat_template,
        "model_max_length": model.context,
    }


def model_card(model: ServedModel, name: str) -> dict[str, Any]:
    receipt = model.ready.receipt
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "octavo",
        "root": model.name,
        "parent": None,
        "max_model_len": model.context,
        "permission": [],
        "octavo": {
            "formats": sorted({use.format for use in receipt.kernels}),
            "activations": sorted({use.activations for use in receipt.kernels}),
            "kv": receipt.kv_format,
            "kv_tokens": model.kv_tokens,
            "isa": receipt.isa,
            "threads": receipt.threads,
            "bytes_per_token": receipt.bytes_per_token,
            "requantized": receipt.requantized,
            "embeddings": {"dimensions": model.ready.hidden, "pooling": POOLING},
            "fallbacks": [use.role for use in receipt.kernels if use.fallback],
        },
    }
