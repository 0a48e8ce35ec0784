"""lm-eval's interface: scores are those of whole logits, conventions are lm-eval's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from octavo import LLM
from octavo.backends.base import RuntimeConfig
from octavo.core.errors import ConfigError
from octavo.engine.loading import load_executor
from octavo.evals.logprobs import log_softmax
from octavo.evals.scorer import ExecutorScorer
from octavo.io.checkpoint import open_model
from support.served_process import tiny_chat_gguf

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from octavo.harness.lm_eval_model import OctavoLM, sampling

CONFIG = RuntimeConfig(context=96, threads=1)
# A log-probability of the engine is rounded to fp32 (2^-24 of less than 16); a text has at most 96.
TOLERANCE = 96 * 16 * 2.0**-23


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_gguf(tmp_path_factory.mktemp("lm") / "tiny.gguf", context=96)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(str(path), config=CONFIG) as found:
        yield found


@pytest.fixture(scope="module")
def scorer(path: Path) -> Iterator[ExecutorScorer]:
    with open_model(path) as model:
        executor = load_executor(model.spec, model.source, CONFIG)
    with closing(ExecutorScorer(executor, "")) as found:
        yield found


def instances(kind: str, *arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def expected(scorer: ExecutorScorer, tokens: list[int], first: int) -> tuple[float, bool]:
    """log P(tokens[first:] | tokens[:first]) and whether each is the likeliest."""
    logits = np.concatenate([block.copy() for block in scorer.logits(tokens, 0, 32)])
    rows, wanted = log_softmax(logits)[first - 1 : -1], np.array(tokens[first:])
    score = float(rows[np.arange(len(wanted)), wanted].sum())
    return score, bool((rows.argmax(1) == wanted).all())


def test_continuations_have_their_likelihood(llm: LLM, scorer: ExecutorScorer) -> None:
    pairs = [("The sky is", " blue"), ("The sky is", " red"), ("Grass ", "is green, mostly")]
    found = OctavoLM(llm).loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        tokens = llm.tokenizer.encode(context + continuation)
        first = len(llm.tokenizer.encode(context.rstrip()))
        wanted, top = expected(scorer, tokens, first)
        assert score == pytest.approx(wanted, abs=TOLERANCE)
        assert greedy == top


def test_greedy_is_said_of_what_greedy_decoding_gives(llm: LLM) -> None:
    model = OctavoLM(llm)
    context = llm.tokenizer.encode("The sky is")
    [answer] = llm.generate([context])
    tokens = list(answer.tokens[:4])
    assert model._scored([(context, tokens)])[0][1]
    other = (tokens[-1] + 1) % llm.spec.vocab
    assert not model._scored([(context, [*tokens[:-1], other])])[0][1]


def test_without_a_context_the_prefix_token_stands(llm: LLM, scorer: ExecutorScorer) -> None:
    model = OctavoLM(llm)
    [(score, _)] = model.loglikelihood(instances("loglikelihood", ("", "blue")), disable_tqdm=True)
    tokens = [model.prefix_token_id, *llm.tokenizer.encode("blue", add_special=False)]
    assert score == pytest.approx(expected(scorer, tokens, 1)[0], abs=TOLERANCE)


def test_long_contexts_lose_their_beginning(llm: LLM, scorer: ExecutorScorer) -> None:
    text = "abcdefghij" * 30
    [(score, _)] = OctavoLM(llm).loglikelihood(
        instances("loglikelihood", (text, " end")), disable_tqdm=True
    )
    tokens = llm.tokenizer.encode(text + " end")[-95:]
    behind = len(llm.tokenizer.encode(text + " end")) - len(llm.tokenizer.encode(text))
    wanted = expected(scorer, tokens, len(tokens) - behind)[0]
    assert score == pytest.approx(wanted, abs=TOLERANCE)


def test_a_rolling_text_scores_each_token_once(llm: LLM, scorer: ExecutorScorer) -> None:
    model, text = OctavoLM(llm), "The sky is blue, grass is green. "
    [short] = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    tokens = [model.prefix_token_id, *llm.tokenizer.encode(text, add_special=False)]
    assert short == pytest.approx(expected(scorer, tokens, 1)[0], abs=TOLERANCE)
    [long] = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text * 20,)))
    assert long < short


def test_answers_end_where_a_task_says(llm: LLM) -> None:
    model = OctavoLM(llm)
    [whole] = model.generate_until(
        instances("generate_until", ("The sky is", {"max_gen_toks": 12, "until": []}))
    )
    stop = whole[4:6]
    [cut] = model.generate_until(
        instances("generate_until", ("The sky is", {"max_gen_toks": 12, "until": [stop]}))
    )
    assert cut == whole[: whole.index(stop)]


def test_options_of_tasks(llm: LLM) -> None:
    greedy = sampling({"until": "x", "temperature": 0.7, "do_sample": False}, 96)
    assert (greedy.temperature, greedy.stop, greedy.max_tokens) == (0.0, ("x",), 48)
    assert sampling({"temperature": 0.7, "max_gen_toks": 5}, 96).temperature == 0.7
    with pytest.raises(ConfigError, match="num_beams"):
        sampling({"num_beams": 4}, 96)


def test_a_multiple_choice_task_runs(
    llm: LLM, scorer: ExecutorScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    choices, answers = [" red", " blue", " green"], [1, 2, 0]
    asked = zip(("The sky is", "Grass is", "Blood is"), answers, strict=True)
    rows = [{"q": q, "choices": choices, "a": a} for q, a in asked]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colours.yaml").write_text(
        f"task: colours\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'test.jsonl'}}}}}\n"
        "doc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: a\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    report = simple_evaluate(
        model=OctavoLM(llm), tasks=["colours"], task_manager=manager, bootstrap_iters=0
    )
    right = 0
    for row in rows:
        first = len(llm.tokenizer.encode(row["q"]))
        scores = [expected(scorer, llm.tokenizer.encode(row["q"] + c), first)[0] for c in choices]
        right += scores.index(max(scores)) == row["a"]
    assert report["results"]["colours"]["acc,none"] == pytest.approx(right / 3)
