"""Descent on what counts: KL(whole head || factored head) over the states that were gathered.

The weighted SVD minimizes squared errors of logits under one average weighting; the KL divergence
weighs each context's own likely tokens. Adam on the shared factor, from the SVD on; a row of the
other belongs to one token, and the few states that reach it would only be learned by heart. The
learning rate falls linearly to zero; which states a step sees is a function of its number alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from octavo.core.rng import uniform_array
from octavo.vocab.lowrank import Factors

F32 = npt.NDArray[np.float32]

_BATCH = 64  # states of a step
_RATE = 1e-3  # of the largest step, relative to the root mean square of a factor
_KIND_ORDER = 17  # Philox draws that choose states, apart from those that shuffle windows


def refine(factors: Factors, table: F32, states: F32, softcap: float | None, steps: int) -> Factors:
    """The factors after `steps` updates against `table` float32 [vocab, hidden] on `states`
    float32 [n, hidden]."""
    whole, inputs = torch.from_numpy(table), torch.from_numpy(states)
    # Columns of one size, so that a step of Adam means as much in each.
    scale = torch.from_numpy(factors.rows).square().mean(dim=0).sqrt()
    rows = torch.from_numpy(factors.rows) / scale
    shared = (torch.from_numpy(factors.shared) * scale[:, None]).requires_grad_()
    rate = _RATE * float(shared.detach().square().mean().sqrt())
    optimizer = torch.optim.Adam([shared], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        x = inputs[_chosen(step, len(states))]
        with torch.no_grad():
            target = _log_softmax(x @ whole.T, softcap)
        found = _log_softmax((x @ shared.T) @ rows.T, softcap)
        optimizer.zero_grad()
        loss = F.kl_div(found, target, log_target=True, reduction="batchmean")
        torch.autograd.backward([loss])
        optimizer.step()
        schedule.step()
    thin = (shared.detach() / scale[:, None]).numpy()
    return Factors(factors.rows, thin, factors.energy)


def _log_softmax(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(capped, dim=-1)


def _chosen(step: int, count: int) -> torch.Tensor:
    draws = uniform_array(0, np.arange(_BATCH), step, _KIND_ORDER)
    return torch.from_numpy(np.minimum((draws * count).astype(np.int64), count - 1))
