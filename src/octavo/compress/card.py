"""The model card of an artifact, README.md: what it is, what it cost, how to run it.

Made from the manifest alone, so that equal artifacts have equal cards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from octavo.io.artifact import COMPRESSED_TENSORS

CARD = "README.md"


def model_card(content: Mapping[str, Any]) -> str:
    """The text. `content` is octavo.json's; its `quality` may be missing or None."""
    parts = (_front(content), _origin(content), _quality(content), _use(content))
    return "\n".join(line for part in parts for line in part) + "\n"


def _front(content: Mapping[str, Any]) -> Iterator[str]:
    yield from ("---", "library_name: octavo", "pipeline_tag: text-generation")
    yield from ("base_model_relation: quantized", "tags:", "- octavo")
    yield from (f"- {name}" for name, _ in _formats(content))
    yield from ("---", "")


def _formats(content: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Formats of matrices, and how many have each, most first."""
    kinds = Counter(t["format"] for t in content["tensors"].values() if len(t["shape"]) == 2)
    return sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))


def _origin(content: Mapping[str, Any]) -> Iterator[str]:
    source, report = content["source"], content["report"]
    yield f"# {source['name']}, compressed by Octavo {content['octavo']}"
    yield ""
    yield (
        f"{report['bytes'] / 1e6:.1f} MB of weights, {report['bits_per_weight']:.2f} bits each, "
        f"all counted; the source has {report['source_bytes'] / 1e6:.1f} MB. Its "
        "licence holds here too."
    )
    yield from ("", "| matrices | format |", "|---|---|")
    yield from (f"| {count} | `{name}` |" for name, count in _formats(content))
    steps = content["recipe"]["steps"]
    methods = ", ".join(str(step["method"]) for step in steps)
    run = content.get("runtime", {})
    if run.get("kv", "auto") != "auto" or run.get("activations", "auto") != "auto":
        yield ""
        yield f"Made for activations `{run['activations']}` and keys and values in `{run['kv']}`."
    yield from ("", f"Methods, in order: {methods}. Recipe: SHA-256 `{content['recipe_sha256']}`.")
    yield from ("", "Source files:", "")
    for name, file in source["files"].items():
        yield f"- `{name}`, {file['bytes']} bytes, SHA-256 `{file['sha256']}`"
    yield ""


def _quality(content: Mapping[str, Any]) -> Iterator[str]:
    quality = content.get("quality")
    yield from ("## What it cost", "")
    if not quality:
        yield from ("Not measured.", "")
        return
    if quality["collapsed"]:
        yield "**Collapsed**: it agrees with its source on fewer than half of the top tokens."
        yield ""
    yield (
        f"Against the source, both run by {quality['executor']}, windows of {quality['context']} "
        "tokens; 95 % intervals."
    )
    names = ("text", "tokens", "mean KL (nats)", "99.9 % KL", "same top token", "RMS Δp")
    yield from ("", f"| {' | '.join((*names, 'perplexity', 'source'))} |")
    yield "|---|---|---|---|---|---|---|---|"
    for text in quality["texts"]:
        kl, top = text["kl"]["mean"], text["same_top"]
        yield (
            f"| {text['text']} | {text['tokens']} | {kl['value']:.4f} ({kl['low']:.4f} to "
            f"{kl['high']:.4f}) | {text['kl']['999']['value']:.3f} | {top['value']:.1%} | "
            f"{text['rms_delta_p']['value']:.2%} | {text['perplexity']['value']:.3f} | "
            f"{text['base_perplexity']['value']:.3f} |"
        )
    yield ""


def _use(content: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Running it", "", "Here, in this directory:", "", "```")
    yield from ('octavo run . "What is a cache?"', "```", "")
    if content.get("storage") == COMPRESSED_TENSORS:
        yield "In vLLM and transformers, which load this directory as it is:"
        yield from ("", "```", "vllm serve .", "```", "")
    else:
        yield "In vLLM and transformers, where compressed-tensors can say the formats:"
        yield from ("", "```", "octavo export . -o OUT --to compressed-tensors")
        yield from ("vllm serve OUT", "```", "")
    yield "Dequantized, for other engines: `octavo export . -o OUT --to hf --dtype bf16`."
