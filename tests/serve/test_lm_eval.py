"""lm-eval over the server scores a task as the engine itself does, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.backends.base import RuntimeConfig
from support.served_process import serving, tiny_chat_gguf

pytestmark = [pytest.mark.interop, pytest.mark.slow]

CHOICES = [" red", " blue", " green"]
QUESTIONS = ["The sky is", "Grass is", "Blood is", "The sea is", "A leaf is"]
ANSWERS = [1, 2, 0, 1, 2]
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def scored(llm: LLM, question: str, choice: str) -> float:
    """The log-likelihood of a choice behind a question, in this process."""
    tokens, start = (tuple(llm.tokenizer.encode(text)) for text in (question + choice, question))
    params = SamplingParams(max_tokens=1, prompt_logprobs=True, logprobs=0)
    [answer] = llm.generate([tokens], params)
    return sum(entry.logprob for entry in answer.prompt_logprobs[len(start) - 1 :])


def lm_eval(url: str, directory: Path) -> Path:
    """Runs the task; gives the directory of its reports."""
    rows = [{"question": question, "choices": CHOICES, "answer": answer}
            for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]  # fmt: skip
    data = directory / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "colours.yaml").write_text(TASK.format(file=data))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "colours",
        "--model_args", f"model=tiny,base_url={url}/v1/completions,num_concurrent=2",
        "--include_path", str(directory), "--output_path", str(directory / "out"), "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory / "hf")}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **offline}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory / "out"


@pytest.mark.timeout(900)
def test_a_task_has_the_score_that_octavo_computes(tmp_path):
    pytest.importorskip("lm_eval")
    model = tiny_chat_gguf(tmp_path / "tiny.gguf", context=256)
    with serving(model, "--served-model-name", "tiny") as server:
        reports = lm_eval(server.url, tmp_path)
    with LLM(str(model), config=RuntimeConfig(context=256, threads=1)) as llm:
        ours = [[scored(llm, question, choice) for choice in CHOICES] for question in QUESTIONS]
    [samples] = reports.rglob("samples_*.jsonl")
    found = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda s: s["doc_id"])
    assert [[float(pair[0]) for pair in sample["filtered_resps"]] for sample in found] == ours
    [results] = reports.rglob("results_*.json")
    best = [scores.index(max(scores)) for scores in ours]
    right = sum(guess == answer for guess, answer in zip(best, ANSWERS, strict=True))
    accuracy = json.loads(results.read_text())["results"]["colours"]["acc,none"]
    assert accuracy == pytest.approx(right / len(ANSWERS))
