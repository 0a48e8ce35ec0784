"""PyTorch behind benchmarks' `Engine`: transformers in bf16, or gpt-fast's recipe on transformers.

The recipe: a static cache, one compiled step of one token, weights kept in 8 or 4 bits and widened
inside the matrix product (torch's own packed CPU kernels). Without `compile` it is transformers as
it comes, with a growing cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from engines import PROMPT, START, TOGETHER_PROMPT, Fields
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

GROUP = 32


class Int8Linear(nn.Module):
    """One scale per output channel, as gpt-fast has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-8) / 127
        codes = (weight / scales[:, None]).round().clamp(-128, 127)
        self.register_buffer("weight", codes.to(torch.int8))
        self.register_buffer("scales", scales.to(torch.bfloat16))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int4Linear(nn.Module):
    """Groups of 32 with a scale and a zero point each, in torch's packed order."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.outputs = weight.shape[0]
        groups = weight.reshape(self.outputs, -1, GROUP)
        low, high = groups.amin(dim=2), groups.amax(dim=2)
        scales = ((high - low) / 15).clamp(min=1e-8)
        codes = ((groups - low[:, :, None]) / scales[:, :, None]).round().clamp(0, 15)
        codes = codes.reshape(weight.shape).to(torch.int32)
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self.register_buffer("weight", pack(codes, 1))
        # the kernel computes (code - 8) * scale + zero
        both = torch.stack([scales, low + 8 * scales], dim=2).transpose(0, 1).contiguous()
        self.register_buffer("both", both.to(torch.bfloat16))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        out = product(rows, self.weight, GROUP, self.both).reshape(*x.shape[:-1], self.outputs)
        return out if self.bias is None else out + self.bias


KINDS = {"int8": Int8Linear, "int4": Int4Linear}


def quantize_linears(module: nn.Module, kind: type[nn.Module]) -> None:
    """Replace every nn.Linear, head included."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, kind(child))
        else:
            quantize_linears(child, kind)


class Torch:
    """Static shapes for decoding; a prompt runs eagerly, since its length varies."""

    def __init__(self, setup: Fields) -> None:
        torch.set_num_threads(setup["threads"])
        torch.set_grad_enabled(False)
        folder, _, file = setup["model"].rpartition("/")
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.bfloat16
        ).eval()
        if setup["weights"] in KINDS:
            quantize_linears(self.model, KINDS[setup["weights"]])
        self.static, self.context = setup["compile"], setup["context"]
        self.step = torch.compile(self.model, dynamic=False) if self.static else self.model
        self.caches: dict[int, StaticCache] = {}

    def describe(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "transformers": version("transformers")}

    def _cache(self, context: int) -> Any:
        """An empty one. The static one is the same object every time, or the step is compiled
        again."""
        if not self.static:
            return DynamicCache(config=self.model.config)
        if context not in self.caches:
            self.caches[context] = StaticCache(config=self.model.config, max_cache_len=context)
        self.caches[context].reset()
        return self.caches[context]

    def _run(self, model: Any, rows: Tensor, position: int, cache: Any) -> Tensor:
        """Greedy next token of each sequence: [batch, 1]."""
        places = torch.arange(position, position + rows.shape[1])
        out = model(
            input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1,
            position_ids=places.expand(rows.shape), cache_position=places,
        )  # fmt: skip
        chosen: Tensor = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        return chosen

    def prefill(self, tokens: int) -> float:
        cache = DynamicCache(config=self.model.config)
        prompt = torch.arange(PROMPT, PROMPT + tokens)[None]
        begin = time.perf_counter()
        self._run(self.model, prompt, 0, cache)
        return time.perf_counter() - begin

    def decode(self, tokens: int, depth: int) -> float:
        prompt = torch.arange(PROMPT, PROMPT + depth)[None]
        context = 256 if depth + tokens <= 256 else self.context
        return self._decode(tokens, prompt, context)

    def decode_together(self, tokens: int, batch: int) -> float:
        if self.static:
            raise NotImplementedError("the recipe compiles a step of one sequence")
        starts: Sequence[int] = [PROMPT + i * TOGETHER_PROMPT for i in range(batch)]
        prompts = torch.tensor([list(range(s, s + TOGETHER_PROMPT)) for s in starts])
        return self._decode(tokens, prompts, 256)

    def _decode(self, tokens: int, prompts: Tensor, context: int) -> float:
        cache, (batch, depth) = self._cache(context), prompts.shape
        if depth:
            self._run(self.model, prompts, 0, cache)
        chosen = torch.full((batch, 1), START)
        begin = time.perf_counter()
        for position in range(depth, depth + tokens):
            chosen = self._run(self.step, chosen, position, cache)
        return time.perf_counter() - begin
