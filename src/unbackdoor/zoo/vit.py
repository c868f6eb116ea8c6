"""A small vision transformer: patches of 4×4, pre-norm, six blocks.

References:
    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR
    2021, arXiv:2010.11929. State-dict keys as in timm, so that a timm ``VisionTransformer`` of patch 4, width
    192, depth 6 and 3 heads loads: ``cls_token, pos_embed, patch_embed.proj, blocks.<i>.{norm1, attn.qkv,
    attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH, WIDTH, DEPTH, HEADS = 4, 192, 6, 3
EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """One token a patch: (N, C, H, W) -> (N, patches, WIDTH)."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, WIDTH, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens, row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention, spelled out so that second derivatives exist on every device."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mixed tokens, (N, tokens, WIDTH) -> the same."""
        split = self.qkv(tokens).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = split
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between, four times as wide inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the transformed tokens, each for itself."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention, then a small network a token, each behind a LayerNorm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=EPSILON), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=EPSILON), Mlp()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the block."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SmallViT(nn.Module):
    """The classifier reads the class token; 2.7 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        num_patches = (input_size // PATCH) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_patches + 1, WIDTH), std=0.02))
        self.patch_embed = PatchEmbed(in_channels)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.head = nn.Linear(WIDTH, num_classes)
        self.apply(_small_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return self.head(self.norm(self.blocks(tokens + self.pos_embed))[:, 0])


def _small_weights(module: nn.Module) -> None:
    """Start linear layers from N(0, 0.02²) and zero biases, as the paper's code does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
