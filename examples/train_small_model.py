"""Train a small Llama from random weights and save it for `octavo run`.

python examples/train_small_model.py DIRECTORY [--steps 1500] [--corpus code]

On articles of Wikipedia, or on sources of Python's standard library and on these articles; the
other half of the articles, or of the library's modules, is held out. A killed run goes on from its
last checkpoint in DIRECTORY/training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from octavo.backends.reference.options import ReferenceOptions
from octavo.formats.number_format import NumberFormat
from octavo.io.corpora import stdlib_code, stdlib_packages, wikipedia
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
    "num_hidden_layers": 4,
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


def save(model: QatModel, tokenizer: Tokenizer, directory: Path, readme: str) -> None:
    save_masters(model, CONFIG, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": END, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    (directory / "README.md").write_text(readme, encoding="utf-8")


def losses(model: QatModel, corpus: Corpus) -> Iterator[float]:
    """Of every held-out window, in nats per token."""
    weights = {role: weight.detach() for role, weight in model.prepared().items()}
    for window in corpus.held_out:
        yield model.loss(window[None], weights).item()


@dataclass(frozen=True, slots=True)
class Text:
    """What is trained on and what is held out, never of one article or module, and their names."""

    train: str
    held_out: str
    names: str


def read_text(corpus: str) -> Text:
    prose = wikipedia("calibration")
    if corpus == "wikipedia":
        names = "even articles of octavo.io.corpora.wikipedia; held out: odd articles"
        return Text(prose, wikipedia("evaluation"), names)
    train = "\n\n".join([stdlib_code("calibration"), prose, stdlib_packages()])
    names = (
        "octavo.io.corpora stdlib_code (even modules), stdlib_packages and wikipedia (even "
        "articles); held out: stdlib_code, odd modules"
    )
    return Text(train, stdlib_code("evaluation"), names)


def describe(model: QatModel, corpus: Corpus, seen: str, bytes_per_token: float) -> str:
    values = np.array(list(losses(model, corpus)))
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    low, high = math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)
    bits = mean / math.log(2) / bytes_per_token
    return (
        f"A Llama of {sum(w.numel() for w in model.masters.values()):,} parameters, fp32, trained "
        f"by examples/train_small_model.py from random weights.\n\n{seen}\n"
        f"On {len(corpus.held_out)} windows of {CONTEXT} held-out tokens: "
        f"{mean:.4f} +- {error:.4f} nats per token (standard error over windows), "
        f"perplexity {math.exp(mean):.3f} ({low:.3f} to {high:.3f}), {bits:.3f} bits per byte.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--corpus", choices=("wikipedia", "code"), default="wikipedia")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--save-every", type=int, default=300)
    options = parser.parse_args()

    text = read_text(options.corpus)
    tokenizer = train_tokenizer(text.train)
    ids = tokenizer.encode(text.train).ids
    held_out_ids = tokenizer.encode(text.held_out).ids
    corpus = make_corpus(ids, held_out_ids, CONTEXT)
    # the curve needs no more than some 64 windows; the figure at the end is of all
    watched = Corpus(corpus.train, corpus.held_out[:: len(corpus.held_out) // 64 or 1])

    spec = family_for_hf("LlamaForCausalLM").from_hf(ConfigReader(CONFIG, "config.json"))
    masters = random_masters(spec)
    formats = dict.fromkeys(masters, NumberFormat.parse("fp32"))
    model = QatModel(spec, masters, formats, ReferenceOptions())
    config = TrainConfig(
        options.steps, options.rate, warmup=options.steps // 20, final=0.05, weight_decay=0.1,
        beta2=0.98, batch=options.batch, evaluate_every=options.save_every,
        checkpoint_every=options.save_every, precision=options.precision,
    )  # fmt: skip
    began = time.perf_counter()

    def seen(step: int) -> str:
        return (
            f"Step {step} of {options.steps}: {step * options.batch * CONTEXT:,} tokens seen "
            f"({len(corpus.train) * CONTEXT:,} different ones), peak rate {options.rate:g}, "
            f"{options.precision} passes.\nText: {text.names}."
        )

    def on_step(step: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"{step:6} {loss:.4f} {time.perf_counter() - began:.0f} s", flush=True)
        if step % options.save_every == 0:
            save(model, tokenizer, options.directory, seen(step))

    report = Trainer(model, watched, config, options.directory / "training", on_step=on_step).run()
    bytes_per_token = len(text.held_out.encode()) / len(held_out_ids)
    readme = describe(model, corpus, seen(options.steps), bytes_per_token)
    curve = ", ".join(f"{step}: {loss:.4f}" for step, loss in report.held_out)
    readme += f"\nHeld-out loss of {len(watched.held_out)} windows by step: {curve}\n"
    save(model, tokenizer, options.directory, readme)
    print(readme)


if __name__ == "__main__":
    main()
