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


def low_frequencies(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Return the images that the lowest DCT frequencies make: (..., k, l) -> (..., height, width).

    Differentiable; ‖image‖₂ is the norm of the coefficients. An image with fewer pixels a side than there are
    frequencies goes without the highest.

    >>> low_frequencies(torch.full((1, 1), 2.0), 2, 2).round(decimals=3).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    kept = coefficients[..., :height, :width]
    rows, columns = dct_basis(height).to(kept), dct_basis(width).to(kept)
    return rows[: kept.shape[-2]].T @ kept @ columns[: kept.shape[-1]]
