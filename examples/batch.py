"""Several prompts in one batch: the same tokens as one by one, in less time.

python examples/batch.py [MODEL]
"""

from __future__ import annotations

import sys
import time

from octavo import LLM, SamplingParams

PROMPTS = (
    "The first printed books were",
    "A good error message says",
    "Rain falls when",
    "Two cores are enough to",
)


def main(model: str) -> None:
    params = SamplingParams(max_tokens=48)
    with LLM(model) as llm:
        start = time.perf_counter()
        alone = [llm.generate(prompt, params)[0].text for prompt in PROMPTS]
        middle = time.perf_counter()
        together = [completion.text for completion in llm.generate(PROMPTS, params)]
        end = time.perf_counter()
    for prompt, text in zip(PROMPTS, together, strict=True):
        print(f"{prompt}{text}\n")
    print(f"one by one {middle - start:.2f} s, together {end - middle:.2f} s")
    print("identical" if alone == together else "DIFFERENT: this is a bug of ours")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
