"""Train a small Llama from random weights on articles of Wikipedia, and save it for `octavo run`.

python examples/train_small_model.py DIRECTORY [--steps 1500]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.backends.reference.options import ReferenceOptions
from octavo.formats.number_format import NumberFormat
from octavo.io.corpora import wikipedia
from octavo.spec.config_reader import ConfigReader
from octavo.spec.table import family_for_hf
from octavo.train import QatModel, TrainConfig, Trainer
from octavo.train.data import Corpus, make_corpus
from octavo.train.hf_export import save_masters
from octavo.train.initial import random_masters

END = "<|endoftext|>"
VOCAB, CONTEXT = 4096, 256
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE: 256 bytes, one control token, merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return tokenizer


def save(model: QatModel, tokenizer: Tokenizer, directory: Path) -> None:
    save_masters(model, CONFIG, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": END, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")


def losses(model: QatModel, corpus: Corpus) -> Iterator[float]:
    """Of every held-out window, in nats per token."""
    weights = {role: weight.detach() for role, weight in model.prepared().items()}
    for window in corpus.held_out:
        yield model.loss(window[None], weights).item()


def describe(model: QatModel, corpus: Corpus, tokens: int, bytes_per_token: float) -> str:
    values = np.array(list(losses(model, corpus)))
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    bits = mean / math.log(2) / bytes_per_token
    return (
        f"A Llama of {sum(w.numel() for w in model.masters.values()):,} parameters, fp32, trained "
        "by examples/train_small_model.py from random weights.\n\n"
        f"Text: even articles of octavo.io.corpora.wikipedia (calibration); {tokens:,} tokens seen "
        f"({len(corpus.train) * CONTEXT:,} different ones).\n"
        f"Held out: odd articles (evaluation), {len(corpus.held_out)} windows of {CONTEXT} tokens: "
        f"{mean:.4f} +- {error:.4f} nats per token (standard error over windows), "
        f"perplexity {math.exp(mean):.2f}, {bits:.3f} bits per byte.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--save-every", type=int, default=300)
    options = parser.parse_args()

    train, held_out = wikipedia("calibration"), wikipedia("evaluation")
    tokenizer = train_tokenizer(train)
    held_out_ids = tokenizer.encode(held_out).ids
    corpus = make_corpus(tokenizer.encode(train).ids, held_out_ids, CONTEXT)
    # the curve needs no more; the figure at the end is of all windows
    watched = Corpus(corpus.train, corpus.held_out[::16])

    spec = family_for_hf("LlamaForCausalLM").from_hf(ConfigReader(CONFIG, "config.json"))
    masters = random_masters(spec)
    formats = dict.fromkeys(masters, NumberFormat.parse("fp32"))
    model = QatModel(spec, masters, formats, ReferenceOptions())
    config = TrainConfig(
        options.steps, options.rate, warmup=options.steps // 20, final=0.05, weight_decay=0.1,
        batch=options.batch, evaluate_every=options.save_every,
        checkpoint_every=options.save_every, precision=options.precision,
    )  # fmt: skip
    began = time.perf_counter()

    def on_step(step: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"{step:6} {loss:.4f} {time.perf_counter() - began:.0f} s", flush=True)
        if step % options.save_every == 0:
            save(model, tokenizer, options.directory)

    report = Trainer(model, corpus=watched, config=config, on_step=on_step).run()
    save(model, tokenizer, options.directory)
    seen = options.steps * options.batch * CONTEXT
    text = describe(model, corpus, seen, len(held_out.encode()) / len(held_out_ids))
    curve = ", ".join(f"{step}: {loss:.4f}" for step, loss in report.held_out)
    text += f"\nHeld-out loss of every 16th window by step: {curve}\n"
    (options.directory / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
