"""Transformers and mixers of images (N, 3, 8, 8), tokens (N, T) and sequences (N, T, D)."""

import math

import torch
from architecture import Architecture, classes, normal, per_position, tokens
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


class GPT(nn.Module):
    """Causal; the output's weight is the embedding's."""

    def __init__(self, by_hand=False, vocabulary=11, t=6, d=8):
        super().__init__()
        gelu = (lambda: nn.GELU(approximate="tanh")) if by_hand else nn.GELU
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, d),
                "wpe": nn.Embedding(t, d),
                "drop": nn.Identity(),
                "h": nn.ModuleList([Block(d, gelu, causal=True, by_hand=by_hand) for _ in range(2)]),
                "ln_f": nn.LayerNorm(d),
            }
        )
        self.lm_head = nn.Linear(d, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx):
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Llama(nn.Module):
    """RMSNorm, rotary positions, SwiGLU."""

    def __init__(self, d=8):
        super().__init__()
        self.embed, self.norms = nn.Embedding(11, d), nn.ModuleList(nn.RMSNorm(d) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(d, 12, bias=False), nn.Linear(d, 12, bias=False)
        self.down_proj, self.lm_head = nn.Linear(12, d, bias=False), nn.Linear(d, 11, bias=False)

    def rotated(self, x):
        angle = torch.arange(x.size(1), dtype=x.dtype)[:, None] * 0.5 ** torch.arange(4, dtype=x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, idx):
        x = self.embed(idx)
        h = self.norms[0](x)
        x = x + self.o(
            F.scaled_dot_product_attention(self.rotated(self.q(h)), self.rotated(self.k(h)), self.v(h), is_causal=True)
        )
        h = self.norms[1](x)
        x = x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return self.lm_head(self.norms[2](x))


class Bert(nn.Module):
    """Token, type and position embeddings, a padding mask, LayerNorm after, a tanh pooler."""

    def __init__(self, d=8):
        super().__init__()
        self.word, self.kind, self.position = nn.Embedding(11, d, padding_idx=0), nn.Embedding(2, d), nn.Embedding(6, d)
        self.norm, self.attention, self.norm1 = nn.LayerNorm(d), Attention(d), nn.LayerNorm(d)
        self.intermediate, self.out, self.norm2 = nn.Linear(d, 16), nn.Linear(16, d), nn.LayerNorm(d)
        self.pooler, self.classifier = nn.Linear(d, d), nn.Linear(d, 3)
        self.register_buffer("position_ids", torch.arange(6).expand((1, -1)))

    def forward(self, input_ids, attention_mask, token_type_ids):
        h = self.norm(self.word(input_ids) + self.kind(token_type_ids) + self.position(self.position_ids))
        bias = (1.0 - attention_mask[:, None, None, :].to(h.dtype)) * torch.finfo(h.dtype).min
        h = self.norm1(h + self.attention(h, bias))
        h = self.norm2(h + self.out(F.gelu(self.intermediate(h))))
        return self.classifier(torch.tanh(self.pooler(h[:, 0])))


def padded(n, dtype):
    mask = torch.ones(n, 6, dtype=torch.long)
    mask[: n // 2, 4:] = 0
    ids = torch.randint(1, 11, (n, 6)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(2, (n, 6))}


class Translator(nn.Module):
    """Encoder and decoder with cross attention, out of nn.MultiheadAttention."""

    def __init__(self, d=8):
        super().__init__()
        self.source, self.target = nn.Embedding(9, d), nn.Embedding(11, d)
        self.encode = nn.TransformerEncoderLayer(d, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
        self.self_attn, self.cross_attn = (nn.MultiheadAttention(d, 2, batch_first=True) for _ in range(2))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d) for _ in range(3))
        self.ff, self.generator = nn.Sequential(nn.Linear(d, 12), nn.ReLU(), nn.Linear(12, d)), nn.Linear(d, 11)

    def forward(self, source, target):
        memory, h = self.encode(self.source(source)), self.target(target)
        causal = torch.triu(torch.ones(h.size(1), h.size(1), dtype=torch.bool), diagonal=1)
        h = self.norm1(h + self.self_attn(h, h, h, attn_mask=causal, need_weights=False)[0])
        h = self.norm2(h + self.cross_attn(h, memory, memory)[0])
        return self.generator(self.norm3(h + self.ff(h)))


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
LANGUAGE = {"inputs": tokens(6, 11), "targets": classes(11, 6), "loss": per_position}
SEQUENCES = {"inputs": normal(5, 8), "targets": classes(4)}

ATTENTION = (
    Architecture(name="vit", build=ViT, **IMAGES),
    Architecture(name="swin", build=Swin, **IMAGES, notes="activations see windows, 4N rows"),
    Architecture(name="mlp_mixer", build=Mixer, **IMAGES),
    Architecture(name="gpt", build=GPT, **LANGUAGE, notes="tied weights"),
    Architecture(name="gpt_by_hand", build=lambda: GPT(by_hand=True), **LANGUAGE, notes="softmax written out"),
    Architecture(name="llama", build=Llama, **LANGUAGE),
    Architecture(name="bert", build=Bert, inputs=padded, targets=classes(3), notes="keywords, integers, a mask"),
    Architecture(
        name="encoder_decoder", build=Translator, targets=classes(11, 6), loss=per_position,
        inputs=lambda n, dtype: (torch.randint(9, (n, 5)), torch.randint(11, (n, 6))),
    ),
    Architecture(name="transformer_encoder_relu", build=lambda: TorchEncoder("relu", False, False), **SEQUENCES),
    Architecture(name="transformer_encoder_gelu", build=lambda: TorchEncoder(F.gelu, True, True), **SEQUENCES),
    Architecture(
        name="attention_pooling", build=AttentionPooling, inputs=normal(6, 5), targets=classes(4), output=lambda out: out[0]
    ),
)  # fmt: skip
