"""The sections of `versus.py`: each measures one thing for one model and gives a plain record."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import contenders
from contenders import FILES, OURS, Contender, Places, Pool, Runner, Use, for_use
from engines import Task
from make_rivals import read_per_token, rival_file
from peak import peak_memory
from ratios import MODELS, STEADY, spread

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything, so that a model's run ends in time.

    rounds at most and seconds for the rounds of a section; two rounds always run.
    """

    rounds: int
    seconds: float
    decode: int
    together: int
    tuning: int  # tokens of a prefill; 0: no tuning, the first of each rival's settings
    scored: int
    rivals: tuple[str, ...]
    depths: tuple[int, ...] = (2048, 4096)
    batches: tuple[int, ...] = (4, 8, 16)


MOST = ("llama.cpp", "ik_llama.cpp", "openvino", "transformers")
PLANS: Mapping[str, Plan] = MappingProxyType(
    {
        MODELS[0]: Plan(9, 45, 128, 32, 512, 4096, MOST),
        MODELS[1]: Plan(7, 40, 128, 32, 256, 2048, MOST[:3]),
        MODELS[2]: Plan(5, 35, 64, 16, 128, 1024, MOST[:3], (4096,), (4, 16)),
    }
)
QUICK = Plan(3, 8, 32, 16, 0, 1024, MOST[:1], (2048,), (16,))
SLOW = ("transformers bf16", "torch int8", "torch int4")  # run a quarter of the tokens


def plan_of(model: str, quick: bool) -> Plan:
    return QUICK if quick else PLANS[model]


@dataclass(slots=True)
class Session:
    """One model's run: its contenders, their chosen settings, and the running processes."""

    model: str
    plan: Plan
    places: Places
    able: tuple[str, ...]
    runners: Pool
    tell: Callable[[str], None] = lambda words: None
    lines: dict[str, Contender] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*FILES.values(), "f16"):
            if not rival_file(self.places.files, self.model, name).exists():
                raise SystemExit(
                    f"{self.places.files} lacks {self.model}-{name}.gguf: run "
                    f"`python benchmarks/make_rivals.py {self.places.files} {self.model}`"
                )
        mine = {name: contenders.ours(self.places, self.model, name) for name in OURS}
        self.lines = mine | contenders.rivals(self.places, self.model, self.able)

    def choose(self, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Settings found by an earlier tuning pass."""
        for name, setups in chosen.items():
            if name in self.lines:
                self.lines[name].chosen.update(setups)

    def runner(self, name: str, use: Use) -> Runner:
        return self.runners.get(name, for_use(self.lines[name].setup(use), use))


@dataclass(slots=True)
class Rounds:
    """Samples of interleaved rounds: rates[contender][task], probes, and who couldn't and why."""

    rates: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    probes: list[float] = field(default_factory=list)
    unable: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def sample(self, session: Session, name: str, use: Use, task: tuple[str, Task]) -> None:
        """One contender, once. A failure takes it out of the section and is recorded."""
        if name in self.unable:
            return
        key, what = task
        if name in SLOW and what.kind == "decode":
            what = replace(what, tokens=max(4, what.tokens // 4))
        try:
            runner = session.runner(name, use)
            rate = what.work / runner.measure(what)
        except (NotImplementedError, RuntimeError, subprocess.TimeoutExpired) as error:
            self.unable[name] = str(error)
            return
        self.commands[name] = runner.command
        self.rates.setdefault(name, {}).setdefault(key, []).append(rate)

    def probe(self, runner: Runner, what: str) -> None:
        """The roof of this round, found by our own process; none where it can't."""
        try:
            self.probes.append(runner.ask(what))
        except NotImplementedError as error:
            self.unable[f"probe {what}"] = str(error)


def shares(samples: Sequence[float], probes: Sequence[float], cost: float) -> list[float]:
    """Round by round: work per second over what the probe of that round found."""
    return [rate * cost / roof for rate, roof in zip(samples, probes, strict=False)]


def run_rounds(
    session: Session, names: Sequence[str], use: Use, tasks: Sequence[tuple[str, Task]],
    probe: str = "",
) -> Rounds:  # fmt: skip
    """A warm-up, then rounds over everyone; each begins one engine further on."""
    rounds, warm = Rounds(), Rounds()
    session.runners.keep(for_use(session.lines[name].setup(use), use) for name in names)
    for name in names:
        session.tell(f"warming up {name}")
        for key, task in tasks:
            warm.sample(session, name, use, (key, _short(task)))
    rounds.unable.update(warm.unable)
    begin = time.perf_counter()
    for number in range(session.plan.rounds):
        if number >= 2 and time.perf_counter() - begin > session.plan.seconds:
            break
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            session.tell(f"round {number + 1}, {name}")
            for task in tasks:
                rounds.sample(session, name, use, task)
            if probe and name == "octavo a":
                rounds.probe(session.runner(name, use), probe)
    return rounds


def _short(task: Task) -> Task:
    """Enough to fault in pages and wake thread pools, and to fill the context before it."""
    tokens = min(task.tokens, 64 if task.kind == "prefill" else 4)
    return Task(task.kind, tokens, task.depth, task.batch)


def _record(rounds: Rounds) -> Record:
    return {
        "rates": rounds.rates,
        "probes": rounds.probes,
        "unable": rounds.unable,
        "commands": rounds.commands,
    }


def _names(session: Session, *wanted: str) -> list[str]:
    """Those of `wanted` that take part."""
    return [name for name in session.lines if name in wanted]


WHOLE = ("openvino", *SLOW)


def settings(session: Session) -> Record:
    """Each rival with each of its settings, briefly; the best by use is kept for what follows."""
    chosen: dict[str, dict[str, Any]] = {}
    tried: list[Record] = []
    if not session.plan.tuning:
        return {"chosen": chosen, "tried": tried}
    for name, contender in session.lines.items():
        if len(contender.settings) == 1 or name.endswith(" b"):
            continue
        best = tune(session, contender, tried)
        contender.chosen.update(best)
        chosen[name] = best
        twin = session.lines.get(name.removesuffix("a") + "b")
        if twin and name.endswith(" a"):
            model = {"model": twin.settings[0]["model"]}
            chosen[twin.name] = {use: {**setup, **model} for use, setup in best.items()}
            twin.chosen.update(chosen[twin.name])
    return {"chosen": chosen, "tried": tried}


def _uses(contender: Contender, plan: Plan) -> dict[Use, Task]:
    depth = Task("decode", 16, min(512, plan.depths[0]))
    if contender.name.endswith("kv8"):
        return {"depth": depth}
    tuned: dict[Use, Task] = {
        "prefill": Task("prefill", plan.tuning),
        "decode": Task("decode", 32),
        "together": Task("decode", 8, batch=contenders.SEQUENCES),
    }
    return {**tuned, "depth": depth} if contender.name.startswith("llama.cpp") else tuned


def tune(session: Session, contender: Contender, tried: list[Record]) -> dict[Use, Any]:
    """The setup with the highest rate by use. One thread is only tried for decoding."""
    best: dict[Use, tuple[float, Any]] = {}
    for setup in contender.settings:
        switches = {k: v for k, v in setup.items() if k not in ("model", "programs", "python")}
        session.tell(f"{contender.name} {switches}")
        for use, task in _uses(contender, session.plan).items():
            if setup["threads"] < session.places.threads and use in ("prefill", "together"):
                continue
            rate = _brief(session, contender.name, for_use(setup, use), task)
            tried.append({"name": contender.name, "use": use, "setup": switches, "rate": rate})
            if isinstance(rate, float) and rate > best.get(use, (0.0, None))[0]:
                best[use] = rate, setup
        for use in ("decode", "together"):
            session.runners.drop(for_use(setup, use))
    return {use: setup for use, (_, setup) in best.items()}


def _brief(session: Session, name: str, setup: contenders.Setup, task: Task) -> float | str:
    """The better of two (a program's own warm-up is enough for it), or why it failed."""
    try:
        runner = session.runners.get(name, setup)
        times = 1 if "programs" in setup else 2
        return max(task.work / runner.measure(task) for _ in range(times))
    except (NotImplementedError, RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)


def decode(session: Session) -> Record:
    """Batch 1 from an empty context, with the probe of our own bytes per token in every round.

    Once again when the probes spread over STEADY; the steadier of the two runs counts.
    """
    names = _names(session, "octavo a", "octavo b", "llama.cpp a", "llama.cpp b",
                   "ik_llama.cpp a", "ik_llama.cpp b", *WHOLE)  # fmt: skip
    task = ("decode", Task("decode", session.plan.decode))
    runs = [run_rounds(session, names, "decode", [task], "probe")]
    if spread(runs[0].probes) > STEADY:
        runs.append(run_rounds(session, names, "decode", [task], "probe"))
    best = min(runs, key=lambda run: spread(run.probes))
    size = session.runner("octavo a", "decode").facts["bytes_per_token"]
    reached = shares(best.rates["octavo a"]["decode"], best.probes, size)
    return {
        **_record(best),
        "shares": {"bandwidth": reached},
        "probe_spread": [spread(run.probes) for run in runs],
        "octavo": {n: session.runner(n, "decode").facts for n in ("octavo a", "octavo b")},
    }


def prefill(session: Session) -> Record:
    """512 tokens; our share of the integer peak counts the linear layers of all rows only."""
    names = _names(session, "octavo a", "octavo b", "llama.cpp a", "llama.cpp b",
                   "ik_llama.cpp a", *WHOLE)  # fmt: skip
    task = ("prefill", Task("prefill", 512))
    rounds = run_rounds(session, names, "prefill", [task], "int8_peak")
    work = 2 * session.runner("octavo a", "prefill").facts["multiplications_per_row"]
    reached = shares(rounds.rates["octavo a"]["prefill"], rounds.probes, work)
    return {**_record(rounds), "shares": {"int8": reached}}


def together(session: Session) -> Record:
    """Several sequences, decoding only: aggregate tokens per second."""
    names = _names(session, "octavo a", "octavo b", "llama.cpp a", "llama.cpp b",
                   "ik_llama.cpp a", *WHOLE)  # fmt: skip
    count = session.plan.together
    tasks = [(f"x{n}", Task("decode", count, batch=n)) for n in session.plan.batches]
    return _record(run_rounds(session, names, "together", tasks))


def depth(session: Session) -> Record:
    """Decode behind a long context, KV in 16 and in 8 bits. Every prefix is computed once."""
    names = _names(session, "octavo a", "llama.cpp a", "octavo a kv8", "llama.cpp a kv8")
    if session.model != MODELS[2]:
        names += _names(session, "openvino")
    merged = Rounds()
    for behind in session.plan.depths:
        task = (f"d{behind}", Task("decode", min(64, session.plan.decode), behind))
        rounds = run_rounds(session, names, "depth", [task])
        merged.unable.update(rounds.unable)
        merged.commands.update(rounds.commands)
        for name, rates in rounds.rates.items():
            merged.rates.setdefault(name, {}).update(rates)
    return _record(merged)


def memory(session: Session) -> Record:
    """Peak proportional memory of a fresh process from its start to 128 decoded tokens."""
    peaks = {}
    for name in _names(session, "octavo a", "llama.cpp a"):
        setup = {**session.lines[name].setup("decode"), "context": 1024, "sequences": 1}
        if setup["engine"] == "octavo":
            setup["engine"] = "octavo-library"
        session.tell(name)
        peaks[name], _ = peak_memory(name, setup, Task("decode", 128))
    return {"peak_bytes": peaks}


def bytes_per_token(session: Session) -> Record:
    """What both sides of each pair read for a token: (ours, llama.cpp's)."""
    pairs = {}
    for pair, kind in FILES.items():
        facts = session.runner(f"octavo {pair}", "decode").facts
        theirs = read_per_token(rival_file(session.places.files, session.model, kind))
        pairs[pair] = (facts["bytes_per_token"], theirs)
    return {"pairs": pairs}


def quality(session: Session) -> Record:
    """Mean KL from the F16 file on the same positions, both pairs."""
    source = rival_file(session.places.files, session.model, "f16")
    script = Path(__file__).with_name("quality.py")
    pairs, commands = {}, {}
    for pair, kind in FILES.items():
        number_format, keep, _ = OURS[f"octavo {pair}"]
        session.tell(f"pair ({pair})")
        command = [
            sys.executable, str(script), str(source),
            str(rival_file(session.places.files, session.model, kind)),
            "--format", number_format, "--tokens", str(session.plan.scored),
            *(("--keep", ",".join("=".join(item) for item in keep)) if keep else ()),
            *(("--code",) if "coder" in session.model else ()),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"quality.py failed: {done.stderr.strip()[-400:]}")
        pairs[pair], commands[pair] = json.loads(done.stdout), command[1:]
    return {"pairs": pairs, "commands": commands}


SECTIONS: Mapping[str, Callable[[Session], Record]] = MappingProxyType(
    {
        "settings": settings,
        "decode": decode,
        "bytes": bytes_per_token,
        "prefill": prefill,
        "together": together,
        "depth": depth,
        "memory": memory,
        "quality": quality,
    }
)
