"""Attention and mixers on images (N, 3, 8, 8) and sequences (N, T, D)."""

import math

import torch
from architecture import Architecture, classes, normal
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention of (N, T, D): `scaled_dot_product_attention`, or softmax written by hand."""

    def __init__(self, d, heads=2, causal=False, by_hand=False):
        super().__init__()
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.heads, self.causal, self.by_hand = heads, causal, by_hand

    def forward(self, x, bias=None):
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if not self.by_hand:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.causal)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            if self.causal:
                att = att.masked_fill(torch.tril(torch.ones(t, t)) == 0, float("-inf"))
            y = F.softmax(att if bias is None else att + bias, dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, d))


class Mlp(nn.Module):
    def __init__(self, d, act_layer=nn.GELU):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(d, 2 * d), act_layer(), nn.Linear(2 * d, d)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, d, act_layer=nn.GELU, **attention):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = (
            nn.LayerNorm(d),
            Attention(d, **attention),
            nn.LayerNorm(d),
            Mlp(d, act_layer),
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ViT(nn.Module):
    """Patches, a class token, learned positions."""

    def __init__(self, d=8):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, d, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, d)), nn.Parameter(0.1 * torch.randn(1, 5, d))
        self.blocks = nn.Sequential(Block(d), Block(d))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 4)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class SwinBlock(nn.Module):
    """Attention in 2×2 windows of a 4×4 map, shifted by `roll`, with a bias for each offset."""

    def __init__(self, d, shift):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(d), Attention(d, by_hand=True), nn.LayerNorm(d), Mlp(d)
        self.bias = nn.Parameter(0.02 * torch.randn(2, 4, 4))
        self.shift = shift
        mask = torch.zeros(1, 4, 4, 1)
        if shift:
            mask[:, -1:], mask[:, :, -1:] = 1.0, mask[:, :, -1:] + 2.0
        regions = self.windows(mask).squeeze(-1)
        self.register_buffer("mask", (regions[:, None] != regions[:, :, None]).float()[:, None] * -100.0)

    @staticmethod
    def windows(x):
        n, h, w, d = x.shape
        return x.view(n, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, d)

    def forward(self, x):
        n, h, w, d = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = self.attn(self.windows(y), self.bias + self.mask.repeat(n, 1, 1, 1))
        y = y.view(n, h // 2, w // 2, 2, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, d)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(3, d, 2, 2), nn.Sequential(SwinBlock(d, 0), SwinBlock(d, 1))
        self.reduction, self.norm, self.head = nn.Linear(4 * d, d), nn.LayerNorm(d), nn.Linear(d, 4)

    def forward(self, x):
        x = self.blocks(self.embed(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.head(self.norm(self.reduction(x)).mean((1, 2)))


class MixerBlock(nn.Module):
    def __init__(self, t, d):
        super().__init__()
        self.norm1, self.tokens, self.norm2, self.channels = nn.LayerNorm(d), Mlp(t), nn.LayerNorm(d), Mlp(d)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([MixerBlock(4, 8), MixerBlock(4, 8)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class TorchEncoder(nn.Module):
    """PyTorch's own encoder, its activation by name or by function, time first or batch first."""

    def __init__(self, activation, batch_first, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation=activation, batch_first=batch_first, norm_first=norm_first
        )
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4)
        self.batch_first = batch_first

    def forward(self, x):
        h = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.head(h.mean(1 if self.batch_first else 0))


class AttentionPooling(nn.Module):
    """A learned query attends to the sequence; the weights are returned beside the logits."""

    def __init__(self, d=8):
        super().__init__()
        self.embed, self.query = nn.Sequential(nn.Linear(5, d), nn.Softplus()), nn.Parameter(torch.randn(1, 1, d))
        self.attention, self.head = nn.MultiheadAttention(d, 2, batch_first=True), nn.Linear(d, 4)

    def forward(self, x):
        h = self.embed(x)
        pooled, weights = self.attention(self.query.expand(len(x), -1, -1), h, h)
        return self.head(pooled.squeeze(1)), weights


IMAGES = {"inputs": normal(3, 8, 8), "targets": classes(4)}
SEQUENCES = {"inputs": normal(5, 8), "targets": classes(4)}

ATTENTION = (
    Architecture(name="vit", build=ViT, **IMAGES),
    Architecture(name="swin", build=Swin, **IMAGES, notes="activations see windows, 4N rows"),
    Architecture(name="mlp_mixer", build=Mixer, **IMAGES),
    Architecture(name="transformer_encoder_relu", build=lambda: TorchEncoder("relu", False, False), **SEQUENCES),
    Architecture(name="transformer_encoder_gelu", build=lambda: TorchEncoder(F.gelu, True, True), **SEQUENCES),
    Architecture(
        name="attention_pooling", build=AttentionPooling, inputs=normal(6, 5), targets=classes(4), output=lambda out: out[0]
    ),
)  # fmt: skip
