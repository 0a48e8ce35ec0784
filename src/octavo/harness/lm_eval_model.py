"""lm-eval's interface over a loaded model: its tasks, scored by the executor that serves it.

    from octavo import LLM
    from octavo.harness.lm_eval_model import OctavoLM
    lm_eval.simple_evaluate(model=OctavoLM(LLM("smollm2-135m")), tasks=["arc_easy"])

Conventions are lm-eval's: a continuation's tokens are those that the whole text has behind the
context's; what is too long loses its beginning; a text without context follows the begin token (or
the end token, where a model has no other).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from octavo.core.errors import ConfigError
from octavo.engine.request import SamplingParams

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from octavo.api import LLM

Pair = tuple[Sequence[int], Sequence[int]]
Scored = tuple[float, bool]
_GENERATED = 256  # tokens, where a task says nothing
_KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "seed")


class OctavoLM(TemplateLM):  # type: ignore[misc]
    """`llm` stays the caller's: close it when all is done."""

    def __init__(self, llm: LLM) -> None:
        super().__init__()
        self._llm = llm
        self._tokenizer = llm.tokenizer

    @property
    def eot_token_id(self) -> int:
        ends = self._tokenizer.eos_ids
        if not ends:
            raise ConfigError("the model names no end token, which lm-eval's tasks need")
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        begin = self._tokenizer.bos_id
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids, behind a begin token where this model's texts begin with one."""
        return self._tokenizer.encode(string, add_special=add_special_tokens is not False)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        return [self._rolling(str(request.args[0])) for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._generated(*request.args) for request in requests]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, Sequence[int], Sequence[int]]],
        disable_tqdm: bool = False,
    ) -> list[Scored]:
        return self._scored([(context, continuation) for _, context, continuation in requests])

    def _scored(self, pairs: Sequence[Pair]) -> list[Scored]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it. The
        engine runs them together; equal contexts are computed once."""
        room = self._llm.context - 1  # for the one token that every request makes
        tokens = [tuple(chain(context, continuation))[-room:] for context, continuation in pairs]
        params = SamplingParams(max_tokens=1, prompt_logprobs=True, logprobs=1)
        answers = self._llm.generate(tokens, params)
        found = []
        for (_, continuation), answer in zip(pairs, answers, strict=True):
            scores = answer.prompt_logprobs[-len(continuation) :]
            greedy = all(score.top[0][0] == score.token for score in scores)
            found.append((sum(score.logprob for score in scores), greedy))
        return found

    def _rolling(self, text: str) -> float:
        tokens = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(
            tokens, self.prefix_token_id, max_seq_len=self._llm.context - 2, context_len=1
        )
        pairs = [make_disjoint_window(window) for window in windows]
        return sum(score for score, _ in self._scored(pairs))

    def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        params = sampling(options, self._llm.context)
        tokens = self.tok_encode(context)[-(self._llm.context - params.max_tokens) :]
        [answer] = self._llm.generate([tokens], params)
        return answer.text


def sampling(options: Mapping[str, Any], context: int) -> SamplingParams:
    """A task's `generation_kwargs`. Raises ConfigError for one that means nothing here."""
    for key in options:
        if key not in _KNOWN:
            raise ConfigError(f"generation_kwargs {key!r} is not known: {', '.join(_KNOWN)} are")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    sampled = options.get("do_sample", float(options.get("temperature", 0.0)) > 0)
    return SamplingParams(
        max_tokens=min(int(options.get("max_gen_toks", _GENERATED)), context // 2),
        stop=tuple(stop for stop in stops if stop),
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        min_p=float(options.get("min_p", 0.0)),
        seed=options.get("seed"),
    )
