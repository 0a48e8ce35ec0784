"""`compress`: from a model and a recipe to an artifact that knows what it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo._version import __version__
from octavo.compress import calibration
from octavo.compress.artifact import add_quality, model_files, publish, write_artifact
from octavo.compress.driver import Driver
from octavo.compress.forecast import Forecast, Watch, check_memory
from octavo.compress.layout import laid_out, prunes
from octavo.compress.plan import Plan, plan
from octavo.compress.quality import HeldOut, Quality, context_of, measure, windows_of
from octavo.compress.recipe import Recipe
from octavo.compress.report import CompressionReport
from octavo.compress.state import Stage, WorkDirectory, locked, merged
from octavo.core.errors import NumericsError, ResourceError, UserError
from octavo.io.checkpoint import OpenModel, open_model
from octavo.io.corpora import stdlib_code
from octavo.io.served import Served
from octavo.io.tokenizer import Tokenizer, load_tokenizer
from octavo.spec.graph import role_shape, roles

I64 = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
_LONG_TOKEN = 32  # characters: more than any text's average
EVALUATED = 4096  # tokens of each held-out text
CODE = "standard library"


@dataclass(frozen=True, slots=True)
class Material:
    """What a compression is fed. `tokens` int64 [sequences, length] calibrate (None: the recipe
    needs none); `held_out` texts measure; `name` says where the tokens are from."""

    tokens: I64 | None
    held_out: tuple[HeldOut, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """`quality` is None when no held-out text was given. `forecast` stays out of the artifact: what
    is in it doesn't depend on time. `storage`: octavo, or compressed-tensors, which other engines
    load."""

    out: Path
    report: CompressionReport
    quality: Quality | None
    forecast: Forecast
    storage: str


def compress(
    model: Path, recipe: Recipe, out: Path, material: Material, progress: Progress | None = None
) -> Result:
    """Compress `model` into the new directory `out`, resuming an unfinished run of the same job.

    Work goes on in `.NAME.partial` beside it, which takes the name when all is done and measured.
    Raises UserError when `out` exists, ConfigError while another process writes it, ConfigError and
    FormatError for a recipe that this model can't take, NumericsError for weights that aren't
    finite.
    """
    check_output(out)
    with open_model(model) as opened:
        resolved = plan(recipe, opened.spec)
        files = model_files(opened)
        with locked(partial(out)):
            work = WorkDirectory(partial(out), _identity(recipe, material, files))
            with _clearing(work):
                found = frozenset(name for name in resolved.stages() if work.finished(name))
                watch = Watch(
                    resolved, _length(material), progress, found=found, earlier=work.seconds(),
                    note=work.note_seconds, sequences=_sequences(material),
                )  # fmt: skip
                check_memory(watch.need)
                Driver(opened.source, resolved, material.tokens, work).run(watch)
                forecast = watch.forecast()
            stages = [work.read(name) for name in resolved.stages()]
            whole = merged(stages)
            whole = laid_out(whole, prunes(resolved))
            report = _report(opened, resolved, stages, whole)
            content = _content(recipe, material, files, opened, report)
            finished = work.path / "artifact"
            storage = write_artifact(finished, opened, resolved.spec, whole, content)
            quality = _measured(finished, model, material, progress)
            publish(finished, out)
            work.remove()
    return Result(out, report, quality, forecast, storage)


def _length(material: Material) -> int:
    return 0 if material.tokens is None else material.tokens.shape[1]


def _sequences(material: Material) -> int:
    return 0 if material.tokens is None else material.tokens.shape[0]


def _measured(
    finished: Path, model: Path, material: Material, progress: Progress | None
) -> Quality | None:
    if not material.held_out:
        return None
    quality = measure(finished, model, material.held_out, _measuring(progress))
    add_quality(finished, quality.to_dict())
    return quality


def read_material(
    model: Path, recipe: Recipe, evaluation: Sequence[str] = (), limit: int = EVALUATED
) -> Material:
    """Read and tokenize the recipe's text: one half calibrates, the other is held out, and further
    `evaluation` files with it, `limit` tokens of each. Without any, code of Python's standard
    library is the second text: another domain than the calibration's.

    Raises UserError for texts that are missing, empty, too short or not UTF-8.
    """
    with open_model(model) as opened:
        needs_data = plan(recipe, opened.spec).needs_data
        spec = opened.spec
        gguf = opened.metadata if opened.kind == "gguf" else None
        tokenizer = load_tokenizer(model, gguf)
    begin = calibration.begin_token(tokenizer)
    texts = calibration.read_texts(recipe.calibration.text)
    tokens = None
    if needs_data:
        ids = tokenizer.encode(texts.calibration, add_special=False)
        tokens = calibration.sequences(
            ids, recipe.calibration, spec.max_positions, begin, recipe.seed
        )
    held = [(texts.name, texts.evaluation)]
    held += [(Path(name).name, calibration.read_whole(name)) for name in evaluation]
    if not evaluation:
        held.append((CODE, stdlib_code("evaluation")))
    encoded = [HeldOut(name, _first_tokens(tokenizer, text, limit), begin) for name, text in held]
    for text in encoded:
        windows_of(text, context_of(spec))  # refuses what is too short before the work begins
    return Material(tokens, tuple(encoded), texts.name)


def _first_tokens(tokenizer: Tokenizer, text: str, limit: int) -> tuple[int, ...]:
    """The first `limit` tokens; a long text is not encoded for nothing."""
    return tuple(tokenizer.encode(text[: limit * _LONG_TOKEN], add_special=False)[:limit])


def check_output(out: Path) -> None:
    """Raises UserError when the output can't be a new directory."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or choose another output (-o)")
    if not out.name:
        raise UserError(f"{out} is no name for a directory: choose another output (-o)")


def partial(out: Path) -> Path:
    """Where the work goes on until it is done."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def _clearing(work: WorkDirectory) -> Iterator[None]:
    """What can't succeed when it is repeated leaves nothing behind; all else can be resumed."""
    try:
        yield
    except ResourceError:
        raise
    except (UserError, NumericsError):
        work.remove()
        raise


def _identity(
    recipe: Recipe, material: Material, files: dict[str, dict[str, object]]
) -> dict[str, str]:
    digests = ",".join(f"{name}:{entry['sha256']}" for name, entry in sorted(files.items()))
    tokens = "" if material.tokens is None else calibration.digest(material.tokens)
    return {
        "version of Octavo": __version__,
        "recipe": recipe.digest(),
        "source": hashlib.sha256(digests.encode()).hexdigest(),
        "calibration": tokens,
    }


def _content(
    recipe: Recipe,
    material: Material,
    files: dict[str, dict[str, object]],
    model: OpenModel,
    report: CompressionReport,
) -> dict[str, object]:
    """The manifest's own part; of a calibration file, its name alone."""
    named = replace(recipe, calibration=replace(recipe.calibration, text=material.name))
    calibrated = None
    if material.tokens is not None:
        count, length = material.tokens.shape
        calibrated = {
            **asdict(named.calibration), "sequences": count, "length": length,
            "sha256": calibration.digest(material.tokens),
        }  # fmt: skip
    return {
        "source": {"name": model.path.name, "kind": model.kind, "files": files},
        "recipe": named.to_dict(),
        "recipe_sha256": recipe.digest(),
        "calibration": calibrated,
        "runtime": _served(recipe, report).to_dict(),
        "report": report.to_dict(),
    }


def _served(recipe: Recipe, report: CompressionReport) -> Served:
    maxima = {name: peak for stage in report.stages for name, peak in stage.maxima.items()}
    return Served(recipe.activations, recipe.kv, recipe.keep_activations, maxima)


def _report(
    model: OpenModel, resolved: Plan, stages: Sequence[Stage], whole: Stage
) -> CompressionReport:
    spec = resolved.spec
    return CompressionReport(
        stages=tuple(stage.report for stage in stages),
        source_bytes=sum(tensor.nbytes for tensor in model.tensors.values()),
        bytes=sum(array.nbytes for array in whole.arrays.values()),
        parameters=sum(int(np.prod(role_shape(spec, role))) for role in roles(spec)),
    )


def _measuring(progress: Progress | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, windows: progress("measuring", done, windows)
