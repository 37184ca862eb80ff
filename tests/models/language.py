"""Language models on tokens (N, T): decoders, an encoder, and both with cross attention."""

import torch
from architecture import Architecture, classes, per_position, tokens
from attention import Attention, Block
from torch import nn
from torch.nn import functional as F


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


LANGUAGE = {"inputs": tokens(6, 11), "targets": classes(11, 6), "loss": per_position}

LANGUAGE_MODELS = (
    Architecture(name="gpt", build=GPT, **LANGUAGE, notes="tied weights"),
    Architecture(name="gpt_by_hand", build=lambda: GPT(by_hand=True), **LANGUAGE, notes="softmax written out"),
    Architecture(name="llama", build=Llama, **LANGUAGE),
    Architecture(name="bert", build=Bert, inputs=padded, targets=classes(3), notes="keywords, integers, a mask"),
    Architecture(
        name="encoder_decoder", build=Translator, targets=classes(11, 6), loss=per_position,
        inputs=lambda n, dtype: (torch.randint(9, (n, 5)), torch.randint(11, (n, 6))),
    ),
)  # fmt: skip
