"""The discrete cosine transform, for what is smooth."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_basis(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix D, (size, size): coefficients are D·signal, signal is Dᵀ·them.

    >>> basis = dct_basis(8)
    >>> torch.allclose(basis @ basis.T, torch.eye(8), atol=1e-6)
    True
    """
    frequency, place = torch.arange(size)[:, None], (torch.arange(size) + 0.5)[None] / size
    basis = torch.cos(math.pi * frequency * place) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
