"""Tiny models of transformers with random weights, and attention by its definition to hold against ours."""

import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.masking_utils import sdpa_mask

from flashlla.integrations.transformers import convert_attention
from flashlla.integrations.transformers.attention import PROBE

VOCABULARY, PADDING = 61, 0
DECODERS = ("llama", "qwen3", "mistral", "gpt2")
WINDOW = 5  # of the Mistral model

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # so that attention is not the same for all keys
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.15,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "pad_token_id": PADDING,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_BERT = {
    **{name: value for name, value in _SIZES.items() if name != "num_key_value_heads"},
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# Multi-head latent attention: keys of 12 entries, values of 6.
_DEEPSEEK = {
    **_SIZES,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
CONFIGS = {
    "llama": (LlamaConfig, _SIZES),
    "qwen3": (Qwen3Config, {**_SIZES, "head_dim": 16}),
    "mistral": (MistralConfig, {**_SIZES, "sliding_window": WINDOW}),
    "gpt2": (GPT2Config, _GPT2),
    "bart": (BartConfig, _BART),
    "bert": (BertConfig, _BERT),
    "deepseek": (DeepseekV3Config, _DEEPSEEK),
}


def make_config(name, **changes):
    config_class, options = CONFIGS[name]
    config = config_class(**options)
    for attribute, value in changes.items():
        setattr(config, attribute, value)
    return config


def make_model(name, attention="lla", **changes):
    """A model in evaluation; its configuration may hold more than the model's own class knows."""
    torch.manual_seed(0)
    config = make_config(name, **changes)
    model_class = {"bart": BartForConditionalGeneration, "bert": BertForMaskedLM}.get(name)
    from_config = AutoModelForCausalLM.from_config if model_class is None else model_class._from_config
    return from_config(config, attn_implementation=attention).eval()


def make_member(name, member, **changes):
    """A converted model with a correction that matters: a ridge that differs between heads, a "
    "probe that is not 0."""
    model = make_model(name, "sdpa", **changes)
    convert_attention(model, member, **({"gate_init": 0.8, "ridge_init": 0.3} if member == "lla" else {}))
    torch.manual_seed(1)
    for parameter_name, p in model.named_parameters():
        if any(part in parameter_name for part in ("ridge.raw", "gate.raw", "r_scale")):
            torch.nn.init.normal_(p, 0.5, 0.2)
    return model


def with_attention(model, name, attention, **changes):
    """Another model with the same weights."""
    other = make_model(name, attention, **changes)
    other.load_state_dict(model.state_dict())
    return other


def attention_by_definition(module, query, key, value, attention_mask, scaling=None, **arguments):
    """LLA or Parallax with all its weights, in float64, under a matrix of what is visible.

    A row without keys to see is 0. With a probe among the arguments it is Parallax.
    """
    groups = query.shape[1] // key.shape[1]
    q, k, v = query.double(), *(t.double().repeat_interleave(groups, 1) for t in (key, value))
    visible = (
        torch.ones(q.shape[2], k.shape[2], dtype=torch.bool) if attention_mask is None else attention_mask
    )
    visible = (visible if visible.dtype == torch.bool else visible == 0)[..., : k.shape[2]]
    logits = (q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)).masked_fill(
        ~visible, -torch.inf
    )
    p = logits.softmax(-1).nan_to_num(0.0)
    kbar = p @ k
    centred = k[:, :, None] - kbar[:, :, :, None]  # [batch, heads, q_len, kv_len, head_dim]
    gate = getattr(module.config, "lla_gate", 1.0)
    if (probe := arguments.get(PROBE)) is not None:
        g = -probe.double()
        gate = 1.0
    else:
        ridge = getattr(module.config, "lla_ridge", 1.0)
        if hasattr(module, "lla"):
            ridge, gate = (x[:, None, None, None] for x in (module.lla.ridge(), module.lla.gate()))
        covariance = torch.einsum("bhqk,bhqkd,bhqke->bhqde", p, centred, centred)
        eye = torch.eye(k.shape[-1], dtype=torch.float64)
        g = torch.linalg.solve(covariance + ridge * eye, (q - kbar)[..., None])[..., 0]
        gate = gate[..., 0] if isinstance(gate, torch.Tensor) else gate
    weights = p * (1 + gate * (centred @ g[..., None])[..., 0])
    return (weights @ v).transpose(1, 2).to(query.dtype), None


def visible_matrix(*args, **kwargs):
    """transformers' own boolean matrix, always written out."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def pad(prompts, side):
    """Token rows of different lengths as one batch, and its attention mask."""
    length = max(len(p) for p in prompts)

    def filled(rows, value):
        widths = [(0, length - len(r)) if side == "right" else (length - len(r), 0) for r in rows]
        return torch.stack([F.pad(r, w, value=value) for r, w in zip(rows, widths, strict=True)])

    return filled(prompts, PADDING), filled([torch.ones_like(p) for p in prompts], 0)
