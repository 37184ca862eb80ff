"""80 public architectures: timm's, Hugging Face transformers', torchvision's and PyTorch's own.

Nothing is downloaded: timm's and torchvision's are made without weights, transformers' from small
configurations. Each comes with inputs at a batch of 4 and gives logits (N, K) or (N, T, K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Generator, Tensor, nn

N = 4


@dataclass(frozen=True)
class Entry:
    """`inputs`: positional (a tuple) or keyword (a dict) arguments, drawn from a generator.

    `output`: from what the model returns to its logits; None where it returns them.
    """

    name: str
    source: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Generator], Any]
    output: Callable[[Any], Tensor] | None = None


def normal(*shape: int, name: str = "") -> Callable[[Generator], Any]:
    def inputs(generator: Generator) -> Any:
        x = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
        return {name: x} if name else (x,)

    return inputs


def tokens(length: int = 9, vocabulary: int = 50, **others: Callable[[Generator], Tensor]) -> Callable[[Generator], Any]:
    """`input_ids` (N, T), and further keywords."""

    def inputs(generator: Generator) -> dict[str, Tensor]:
        ids = torch.randint(3, vocabulary, (N, length), generator=generator)
        return {"input_ids": ids, **{name: draw(generator) for name, draw in others.items()}}

    return inputs


# Images of 64 × 64.
CONVOLUTIONAL = [
    "resnet18", "resnet10t", "seresnet18", "resnetv2_18", "skresnet18", "densenet121", "dla46_c", "mobilenetv2_050",
    "mobilenetv3_small_050", "mobilenetv4_conv_small_050", "efficientnet_b0", "efficientnet_lite0", "tinynet_e",
    "mnasnet_small", "ghostnet_050", "lcnet_035", "regnetx_002", "regnety_002", "convnext_atto", "convnextv2_atto",
    "repvgg_a0", "hardcorenas_a", "mixnet_s", "rexnet_100", "hrnet_w18_small", "gernet_s", "nf_regnet_b0",
    "ese_vovnet19b_slim_dw", "starnet_s1", "mambaout_femto", "inception_next_atto", "hgnetv2_b0",
]  # fmt: skip
# With further arguments of `create_model`.
ATTENTION: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64}, "deit_tiny_patch16_224": {"img_size": 64},
    "xcit_nano_12_p16_224": {"img_size": 64}, "pit_ti_224": {"img_size": 64},
    "cait_xxs24_224": {"img_size": 64}, "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4},
    "coat_lite_tiny": {"img_size": 64}, "mixer_s32_224": {"img_size": 64}, "resmlp_12_224": {"img_size": 64},
    "gmlp_ti16_224": {"img_size": 64}, "levit_128s": {"img_size": 64}, "eva02_tiny_patch14_224": {"img_size": 56},
    "mobilevit_xxs": {}, "mobilevitv2_050": {}, "edgenext_xx_small": {}, "poolformer_s12": {}, "pvt_v2_b0": {},
    "efficientvit_b0": {},
}  # fmt: skip


def timm_entry(name: str, **settings: Any) -> Entry:
    def build() -> nn.Module:
        return import_module("timm").create_model(name, pretrained=False, num_classes=5, **settings)

    side = settings.get("img_size", 64)
    return Entry(name, "timm", build, normal(3, side, side))


def vision_entry(name: str) -> Entry:
    def build() -> nn.Module:
        return getattr(import_module("torchvision.models"), name)(weights=None, num_classes=5)

    return Entry(name, "torchvision", build, normal(3, 64, 64))


# Settings that most configurations share; each model's own come over them.
TEXT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
AUDIO = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20,
    "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False,
}  # fmt: skip


def logits(out: Any) -> Tensor:
    return out.logits


def hugging(
    name: str,
    kind: str,
    common: dict[str, Any],
    inputs: Callable[[Generator], Any],
    output: Callable[[Any], Tensor] = logits,
    **settings: Any,
) -> Entry:
    """`kind`: the model class. Its configuration is `common`, and `settings` over it."""

    def build() -> nn.Module:
        cls = getattr(import_module("transformers"), kind)
        return cls(cls.config_class(**{**common, **settings}))

    return Entry(name, "transformers", build, inputs, output)


def decoder_ids(generator: Generator) -> Tensor:
    return torch.randint(3, 50, (N, 7), generator=generator)


def spectrogram(generator: Generator) -> dict[str, Tensor]:
    features = torch.randn(N, 8, 40, generator=generator, dtype=torch.float64)
    return {"input_features": features, "decoder_input_ids": decoder_ids(generator)}


def image_and_text(generator: Generator) -> dict[str, Tensor]:
    pixels = torch.randn(N, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {"input_ids": torch.randint(3, 50, (N, 9), generator=generator), "pixel_values": pixels}


ENCODER_DECODER = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
PIXELS = normal(3, 32, 32, name="pixel_values")
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}

HUGGING_FACE = (
    hugging("bert", "BertForSequenceClassification", TEXT, tokens()),
    hugging("roberta", "RobertaForMaskedLM", TEXT, tokens()),
    hugging("distilbert", "DistilBertForSequenceClassification", {"vocab_size": 50, "pad_token_id": 0}, tokens(), dim=16,
            n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32),
    hugging("albert", "AlbertForSequenceClassification", TEXT, tokens(), embedding_size=8),
    hugging("electra", "ElectraForTokenClassification", TEXT, tokens(), embedding_size=8),
    hugging("deberta_v2", "DebertaV2ForSequenceClassification", TEXT, tokens(), relative_attention=True,
            pos_att_type=["p2c", "c2p"]),
    hugging("gpt2", "GPT2LMHeadModel", {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}, tokens(), n_embd=16, n_layer=2,
            n_head=2, n_positions=32),
    hugging("gpt_neox", "GPTNeoXForCausalLM", TEXT, tokens()),
    hugging("opt", "OPTForCausalLM", TEXT, tokens(), ffn_dim=32, word_embed_proj_dim=16),
    hugging("bloom", "BloomForCausalLM", {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}, tokens()),
    hugging("llama", "LlamaForCausalLM", TEXT, tokens(), num_key_value_heads=1),
    hugging("mistral", "MistralForCausalLM", TEXT, tokens(), **GROUPED),
    hugging("qwen2", "Qwen2ForCausalLM", TEXT, tokens(), num_key_value_heads=1),
    hugging("gemma", "GemmaForCausalLM", TEXT, tokens(), **GROUPED),
    hugging("mixtral", "MixtralForCausalLM", TEXT, tokens(), num_local_experts=3, experts_implementation="eager", **GROUPED),
    hugging("mamba", "MambaForCausalLM", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}, tokens(), state_size=4),
    hugging("t5", "T5ForConditionalGeneration", {"vocab_size": 50}, tokens(decoder_input_ids=decoder_ids), d_model=16, d_kv=8,
            d_ff=32, num_layers=2, num_heads=2),
    hugging("bart", "BartForConditionalGeneration", ENCODER_DECODER, tokens(decoder_input_ids=decoder_ids)),
    hugging("whisper", "WhisperForConditionalGeneration", ENCODER_DECODER, spectrogram, num_mel_bins=8, max_source_positions=20,
            max_target_positions=16),
    hugging("wav2vec2", "Wav2Vec2ForCTC", AUDIO, normal(400, name="input_values")),
    hugging("vit", "ViTForImageClassification", VISION, PIXELS),
    hugging("beit", "BeitForImageClassification", VISION, PIXELS),
    hugging("swin", "SwinForImageClassification", {"image_size": 32, "patch_size": 4}, PIXELS, embed_dim=8, depths=[2, 2],
            num_heads=[2, 2], window_size=4),
    hugging("clip", "CLIPModel", {"projection_dim": 8}, image_and_text, lambda out: out.logits_per_image,
            text_config=TEXT, vision_config=VISION),
)  # fmt: skip


class Recurrent(nn.Module):
    """nn.LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, 2, batch_first=True), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


TORCH = (
    Entry("nn.Transformer", "torch", lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
          lambda g: tuple(torch.randn(N, t, 16, generator=g, dtype=torch.float64) for t in (7, 5))),
    Entry("nn.TransformerEncoder", "torch", encoder, normal(7, 16)),
    Entry("nn.LSTM", "torch", Recurrent, normal(7, 6)),
)  # fmt: skip

ZOO: tuple[Entry, ...] = (
    *(timm_entry(name) for name in CONVOLUTIONAL),
    *(timm_entry(name, **settings) for name, settings in ATTENTION.items()),
    *HUGGING_FACE,
    *(vision_entry(name) for name in ("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5")),
    *TORCH,
)
