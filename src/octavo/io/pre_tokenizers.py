"""How a byte-level BPE vocabulary cuts text before merging, by the name a GGUF file gives it.

The name (`tokenizer.ggml.pre`) stands for a list of patterns in Oniguruma syntax, applied one after
the other. Text cut by the wrong patterns still decodes, only the model answers worse, so an unknown
name is an error and never a default.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.errors import TokenizerError

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cased(ending: str, digits: str) -> str:
    """Words cut where the case changes (tekken, GPT-4o), optionally with their contraction."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}[{_UPPER}]*[{_LOWER}]+{ending}|{start}[{_UPPER}]+[{_LOWER}]*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The patterns of one name, and what its vocabulary implies beside them.

    `ignore_merges`: a word that is itself a token is taken whole. `add_bos`: what a file that does
    not say so itself means. `nfc`: text is composed first (as in the vocabulary's own release).
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0")
_GPT2_NAMES = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "mellum")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_QWEN2_PLAIN_NAMES = ("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "grok-2", "solar-open")
_DEEPSEEK3_NAMES = ("deepseek-v3", "hunyuan-dense", "joyai-llm")
_GPT4O_NAMES = ("gpt-4o", "llama4", "kanana2", "minimax-m2")


def _rows() -> list[tuple[tuple[str, ...], PreTokenizer]]:
    punctuation = r"[\p{P}\$\+<=>\^~\|`]+"
    coder = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    deepseek = (
        "[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        "[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    )
    deepseek3 = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)
    return [
        (_GPT2_NAMES, PreTokenizer((GPT2_PATTERN,))),
        (_DIGIT_NAMES, PreTokenizer((r"\p{N}", GPT2_PATTERN))),
        (("falcon",), PreTokenizer((punctuation, GPT2_PATTERN, "[0-9][0-9][0-9]"))),
        (("qwen2",), PreTokenizer((_QWEN2,), nfc=True)),
        (_QWEN2_PLAIN_NAMES, PreTokenizer((_QWEN2,))),
        (("qwen35",), PreTokenizer((_QWEN35,))),
        (("seed-coder",), PreTokenizer((_SEED,))),
        (_LLAMA3_NAMES, PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)),
        (("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
        (("glm4",), PreTokenizer((_LLAMA3,), ignore_merges=True)),
        (("deepseek-coder",), PreTokenizer(coder)),
        (("deepseek-llm",), PreTokenizer(deepseek)),
        (_DEEPSEEK3_NAMES, PreTokenizer(deepseek3)),
        (("tekken",), PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True)),
        (_GPT4O_NAMES, PreTokenizer((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),))),
    ]


def known_pre_tokenizers() -> dict[str, PreTokenizer]:
    """Every name that can be built, with its patterns."""
    return {name: pre for names, pre in _rows() for name in names}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The entry of a name. Raises TokenizerError with the known names for any other."""
    known = known_pre_tokenizers()
    if name not in known:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {name!r}, a pre-tokenizer that is not known here; known are "
            f"{', '.join(sorted(known))}. Use the model's Hugging Face directory, whose "
            "tokenizer.json says how to cut text, or a newer version of Octavo."
        )
    return known[name]
