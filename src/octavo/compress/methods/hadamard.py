"""Orthogonal matrices that spread every input over all outputs: Hadamard where one is known.

Orders 2^k by Sylvester's doubling, q + 1 and 2 (q + 1) for a prime q by Paley's two constructions,
and their products: 576 = 36 * 16, 640 = 20 * 32, 896 = 28 * 32, 960 = 60 * 16, 4864 = 76 * 64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def random_rotation(n: int, generator: torch.Generator) -> Tensor:
    """Q [n, n], fp64: a Hadamard matrix over sqrt(n) whose rows get random signs, so that any input
    is spread; where no order is known, the orthogonal factor of a normal matrix."""
    H = hadamard(n)
    if H is None:
        normal = torch.randn(n, n, dtype=torch.float64, generator=generator)
        Q, R = torch.linalg.qr(normal)
        unique: Tensor = Q * R.diagonal().sign()  # which also makes its distribution uniform
        return unique
    signs = torch.randint(0, 2, (n, 1), generator=generator).double() * 2 - 1
    rotation: Tensor = H * signs / n**0.5
    return rotation


def hadamard(n: int) -> Tensor | None:
    """H [n, n] of 1 and -1, fp64, with H H^T = n I; None where no construction here gives it."""
    doublings, H = 0, paley(n)
    while H is None and n % 2 == 0:
        doublings, n = doublings + 1, n // 2
        H = paley(n)
    if H is None:
        return None
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    for _ in range(doublings):
        H = torch.kron(H, two)
    return H


def paley(n: int) -> Tensor | None:
    """A Hadamard matrix of order 1, 2, or of Paley's: q + 1 for primes q = 3 mod 4, 2 (q + 1) for
    primes q = 1 mod 4."""
    if n <= 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:n, :n]
    if n % 4 == 0 and is_prime(n - 1):
        S = bordered(n - 1)
        S[1:, 0] = -1  # for q = 3 mod 4 the residues' matrix is skew, and so is this
        return S + torch.eye(n, dtype=torch.float64)
    q = n // 2 - 1
    if n % 4 == 0 and q % 4 == 1 and is_prime(q):
        C = bordered(q)
        off = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        on = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(C, off) + torch.kron(torch.eye(q + 1, dtype=torch.float64), on)
    return None


def bordered(q: int) -> Tensor:
    """[q + 1, q + 1], fp64: 0 on the diagonal, ones around chi(i - j), chi being the quadratic
    character modulo q."""
    residues = {x * x % q for x in range(1, q)}
    chi = torch.tensor([0.0] + [1.0 if d in residues else -1.0 for d in range(1, q)])
    at = torch.arange(q)
    C = torch.ones(q + 1, q + 1, dtype=torch.float64)
    C[1:, 1:] = chi[(at[:, None] - at[None, :]) % q]
    C[0, 0] = 0
    return C


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
