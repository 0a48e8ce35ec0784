"""Cache a book once, ask it five questions: each is answered behind what is computed already.

python examples/ask_a_book.py [MODEL] [BOOK.txt]

Without a book, a module of Python's standard library is one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from octavo import LLM, SamplingParams

QUESTIONS = (
    "What is this text about?",
    "Who is it written for?",
    "Name one thing that it warns of.",
    "Which part comes first?",
    "Sum it up in one sentence.",
)
TOKENS = 2000  # of the book that are read


def main(model: str, path: Path) -> None:
    with LLM(model) as llm:
        book = tuple(llm.tokenizer.encode(path.read_text(encoding="utf-8"))[:TOKENS])
        kept = llm.prefix("book", book)
        print(
            f"{path.name}: {kept.tokens} tokens computed in {kept.seconds:.2f} s, {kept.kept} kept"
        )
        for question in QUESTIONS:
            asked = llm.tokenizer.encode(f"\n\nQuestion: {question}\nAnswer:", add_special=False)
            [answer] = llm.generate([(*book, *asked)], SamplingParams(max_tokens=24))
            cached = 0 if answer.cache is None else answer.cache.read
            print(f"\n{question}{answer.text}")
            print(
                f"  {cached} of {answer.prompt_tokens} tokens cached,"
                f" first token after {1e3 * answer.time_to_first_token:.0f} ms"
            )


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m",
        Path(sys.argv[2] if len(sys.argv) > 2 else argparse.__file__),
    )
