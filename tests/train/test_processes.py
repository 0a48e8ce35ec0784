"""Several processes, precision and recomputation: what must be equal is equal to the bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import ConfigError
from octavo.formats.number_format import NumberFormat
from octavo.train.data import make_corpus
from support.trainable import chain, tiny_masters, tiny_spec

torch = pytest.importorskip("torch")
qat = pytest.importorskip("octavo.train.qat")
trainer = pytest.importorskip("octavo.train.trainer")
processes = pytest.importorskip("octavo.train.processes")
options = pytest.importorskip("octavo.backends.reference.options")


def model_of(name: str = "int4_g32", learn_steps: bool = True, **plan: Any) -> Any:
    masters = tiny_masters(tiny_spec())
    formats = dict.fromkeys(masters, NumberFormat.parse(name))
    return qat.QatModel(
        tiny_spec(), masters, formats, options.ReferenceOptions(**plan), learn_steps
    )


def trained(directory: Path | None = None, model: Any = None, **config: Any) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    corpus = make_corpus(chain(2000, seed=1), chain(400, seed=2), 16)
    settings = trainer.TrainConfig(
        **{"steps": 4, "learning_rate": 3e-3, "batch": 2, "checkpoint_every": 2, **config}
    )
    chosen = model or model_of()
    report = trainer.Trainer(chosen, corpus, settings, directory).run()
    return chosen, report


_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from octavo.train import processes
processes.start("cpu")
import numpy as np
import test_processes
directory = Path(sys.argv[2])
model, report = test_processes.trained(directory)
named = {name: tensor.detach().numpy() for name, tensor in model.parameters().items()}
np.savez(directory / f"rank-{processes.rank()}.npz", **named)
(directory / f"report-{processes.rank()}.txt").write_text(repr((report.train, report.held_out)))
"""


def run_two(directory: Path) -> None:
    here = Path(__file__).parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path]),
        }  # fmt: skip
        command = [sys.executable, "-c", _CHILD, str(here), str(directory)]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    for child in children:
        _, errors = child.communicate()
        assert child.returncode == 0, errors.decode()


def test_two_processes_are_one_with_as_many_passes(tmp_path: Path) -> None:
    run_two(tmp_path)
    model, report = trained(accumulate=2)
    expected = repr((report.train, report.held_out))
    for rank in range(2):
        assert (tmp_path / f"report-{rank}.txt").read_text() == expected
        found = np.load(tmp_path / f"rank-{rank}.npz")
        assert set(found) == set(model.parameters())
        for name, tensor in model.parameters().items():
            np.testing.assert_array_equal(found[name], tensor.detach().numpy(), err_msg=name)
    assert (tmp_path / "state.json").exists()  # written by one of them
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 1


def test_a_process_outside_a_job_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="start it with torchrun"):
        processes.start("cpu")


def test_recomputing_gives_equal_weights() -> None:
    kept, _ = trained(model=model_of(activations="auto", kv_format="int8"))
    again, _ = trained(model=model_of(activations="auto", kv_format="int8"), recompute=True)
    for name, tensor in kept.parameters().items():
        assert torch.equal(tensor, again.parameters()[name]), name


def test_bf16_passes_leave_masters_and_optimizer_in_fp32() -> None:
    exact, full = trained(steps=12)
    mixed, report = trained(steps=12, precision="bf16")
    assert {w.dtype for w in mixed.parameters().values()} == {torch.float32}
    assert all(w.grad is None or w.grad.dtype == torch.float32 for w in mixed.masters.values())
    differ = [n for n, w in exact.parameters().items() if not torch.equal(w, mixed.parameters()[n])]
    assert differ  # it did multiply in bf16,
    first, last = full.train[0][1], full.train[-1][1]
    assert report.train[0][1] == pytest.approx(first, rel=2**-7)  # to bf16's precision
    assert report.held_out[0] == full.held_out[0]  # and held-out losses are those of fp32
    assert report.train[-1][1] < first
    assert last < first
