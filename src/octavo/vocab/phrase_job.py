"""Phrases for a model: mine them on a text of one kind, train their rows, write what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.backends.reference.options import ReferenceOptions
from octavo.compress.artifact import write_json
from octavo.core.errors import ConfigError, UnsupportedError, UserError
from octavo.formats.quantized import QuantizedTensor
from octavo.formats.rtn import encode
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.new_directory import new_directory
from octavo.io.phrases import PHRASES, PhraseTable
from octavo.io.tokenizer import Tokenizer
from octavo.spec.decoder import Role
from octavo.spec.graph import head_role
from octavo.train import TrainConfig, Trainer
from octavo.train.data import make_corpus
from octavo.train.losses import Labels, Loss, Mixed, ModelTeacher
from octavo.train.qat import QatModel
from octavo.vocab.measure import cut, tokenizer_of
from octavo.vocab.mine import MinePlan, Saving, mine, savings
from octavo.vocab.phrase_model import EMBED, HEAD, PhraseModel
from octavo.vocab.phrase_split import Reader, Splitter, Text
from octavo.vocab.phrase_start import start
from octavo.vocab.phrase_teacher import PhraseKl
from octavo.vocab.phrase_tree import PhraseTree
from octavo.vocab.predictable import costs
from octavo.vocab.states import head_states
from octavo.vocab.tables import stacked
from octavo.vocab.writing import Vocabulary, write_model

F32 = npt.NDArray[np.float32]

_HELD_OUT = 0.1  # of the text, at its end: watched while training, never mined
_WATCHED = 64  # windows of it whose loss is taken
_STATES = 16  # hidden states gathered for each of their values, at least
_MOST_STATES = 1024  # and at most: of 256 values, 268 MB
_WINDOW = 256  # base tokens that such a state has behind it, at most


@dataclass(frozen=True, slots=True)
class PhrasePlan:
    """What to mine, and how long to train: on windows of as much text as `context` tokens of the
    base model hold, so that a step sees what one without phrases would; `whole` trains every
    matrix, which is then stored in fp32, and not the new rows alone. `taught` is the share of the
    loss that compares with the base model; the rest is the text's own labels. Raises ConfigError
    unless it is from 0 to 1."""

    mine: MinePlan
    train: TrainConfig
    context: int = 128
    whole: bool = False
    taught: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.taught <= 1:
            raise ConfigError(f"taught is {self.taught}: give a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class PhraseReport:
    """Tokens of the held-out part with the base tokenizer and with phrases; the savings by words,
    of the part that was mined; held-out loss in nats per token before and after training."""

    base_tokens: int
    tokens: int
    savings: tuple[Saving, ...]
    before: float
    after: float

    @property
    def saved(self) -> float:
        return 1 - self.tokens / self.base_tokens


def add_phrases(path: Path, out: Path, plan: PhrasePlan, text: str) -> PhraseReport:
    """Write the model at `path` with phrases mined on `text` to the new directory `out`.

    The phrases' rows are trained before anything is written: no model ever emits an untrained one.
    Raises UserError for a text without repetitions, or too short to train on, and UnsupportedError
    for a model that has phrases or a factored vocabulary already.
    """
    with open_model(path) as model, new_directory(out) as directory:
        tokenizer = tokenizer_of(model)
        _check(model, tokenizer, plan)
        split = int(len(text) * (1 - _HELD_OUT))
        kept, held = ([tokenizer.encode(piece, add_special=False) for piece in cut(part, 8192)]
                      for part in (text[:split], text[split:]))  # fmt: skip
        read = _read(model, kept, plan)
        reader = _reader(model, read)
        known = partial(costs, text=read, reader=reader)
        phrases = mine(kept, plan.mine, tokenizer.token_bytes, model.spec.vocab, known)
        row, watched = ([t for piece in part for t in phrases.joined(piece)]
                        for part in (kept, held))  # fmt: skip
        begun = start(read.states, row, phrases).shifts
        if plan.taught:
            begun = Splitter(read, reader, PhraseTree(phrases)).shifts(begun)
        trained = PhraseModel.from_source(model.source, model.spec, phrases, plan.whole, begun)
        context = round(plan.context * len(row) / sum(map(len, kept)))
        corpus = make_corpus(row, watched, context)
        corpus = replace(corpus, held_out=corpus.held_out[:_WATCHED])
        loss = _loss(model, phrases, plan.taught)
        report = Trainer(trained, corpus, plan.train, loss=loss, watched=Labels()).run()
        write_model(directory, model, _vocabulary(model, trained, phrases))
        found = savings(kept, phrases, tokenizer.token_bytes)
        count = sum(map(len, held))
        before, after = report.held_out[0][1], report.held_out[-1][1]
        return PhraseReport(count, len(watched), found, before, after)


def _reader(model: OpenModel, text: Text) -> Reader:
    head = model.source.tensor(head_role(model.spec)).float32()
    return Reader(text, np.ascontiguousarray(head, np.float32), model.spec.logit_softcap)


def _read(model: OpenModel, texts: Sequence[Sequence[int]], plan: PhrasePlan) -> Text:
    """Windows spread over all of the text, no more than training will see."""
    tokens = np.array([token for text in texts for token in text], np.int64)
    seen = plan.train.steps * plan.train.batch * plan.train.accumulate * plan.context
    hidden = model.spec.hidden
    wanted = min(max(seen, _STATES * hidden), _MOST_STATES * hidden, len(tokens))
    size = min(_WINDOW, model.spec.max_positions)
    windows = [tokens[i : i + size] for i in range(0, len(tokens) - size + 1, size)]
    windows = windows[:: max(1, len(tokens) // wanted)] or [tokens]
    states = head_states(model, [window.tolist() for window in windows], size)
    return Text(np.concatenate(windows), size, states)


def _loss(model: OpenModel, phrases: PhraseTable, taught: float) -> Loss:
    if not taught:
        return Labels()
    base = QatModel.load(model.source, model.spec, ReferenceOptions(format="fp32"))
    return Mixed([(taught, PhraseKl(ModelTeacher(base), phrases)), (1 - taught, Labels())])


def _check(model: OpenModel, tokenizer: Tokenizer, plan: PhrasePlan) -> None:
    if tokenizer.phrases is not None:
        raise UnsupportedError(f"{model.path}: has phrases already; start from its source")
    if model.spec.embed_rank or model.spec.head_rank:
        raise UnsupportedError(f"{model.path}: its vocabulary is factored; add phrases before that")
    if plan.train.steps < 1:
        raise UserError("untrained phrases are never written: give at least 1 step")


def _vocabulary(model: OpenModel, trained: PhraseModel, phrases: PhraseTable) -> Vocabulary:
    spec = replace(model.spec, vocab=trained.spec.vocab, tied_head=False)
    tables = dict(_tables(model, trained))
    config: dict[str, object] = {"vocab_size": spec.vocab, "tie_word_embeddings": False}
    recipe = {"method": "phrases", "count": len(phrases)}
    return Vocabulary(spec, tables, config, recipe, partial(_write, table=phrases))


def _tables(model: OpenModel, trained: PhraseModel) -> Sequence[tuple[Role, QuantizedTensor]]:
    """The old rows as they are stored and the new ones in their format; or all in fp32."""
    if trained.whole:
        whole = trained.convert()
        return list(whole.items())
    found = []
    for role, source in ((EMBED, EMBED), (HEAD, head_role(model.spec))):
        view = model.source.tensor(source)
        rows: npt.NDArray[np.float32] = trained.phrase_rows(role).detach().cpu().numpy()
        old = view.quantized(0, view.shape[0])
        found.append((role, stacked(old, encode(rows, old.format))))
    return found


def _write(directory: Path, table: PhraseTable) -> None:
    write_json(directory / PHRASES, table.to_json())
