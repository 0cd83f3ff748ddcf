"""The tiled PyTorch backend on a real GPU, and a model that trains there with what "auto" takes."""

import pytest
import torch

from flashlla import lla_attention, lla_attention_with_kvcache
from flashlla.models import LanguageModel, LanguageModelConfig, generate
from flashlla.testing.numerics import assert_within_budget, evaluate, exact
from flashlla.testing.problems import random_operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ridge", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("data", ["iid", "steep"])
def test_forward_and_gradients_within_budget(data, ridge, dtype):
    operands, do = random_operands(data, q_len=150, heads=4, kv_heads=2, dtype=dtype, ridge=ridge)
    expected = exact(lla_attention, operands, do)
    operands = {name: t.cuda() for name, t in operands.items()}
    actual = evaluate(lla_attention, operands, do.cuda(), backend="blockwise")
    for name, t in expected.items():
        assert_within_budget(actual[name].cpu(), t, dtype, ridge, gradient=name != "out", name=name)


def test_decoding_equals_the_full_forward():
    operands, _ = random_operands("iid", q_len=70, heads=4, kv_heads=2, gate=False)
    q, k, v = (operands[name].cuda() for name in "qkv")
    k_cache, v_cache = torch.zeros_like(k), torch.zeros_like(v)
    with torch.no_grad():
        full = lla_attention(q, k, v, ridge=0.5, backend="blockwise")
        steps = [
            lla_attention_with_kvcache(
                q[:, t : t + 1],
                k_cache,
                v_cache,
                k[:, t : t + 1],
                v[:, t : t + 1],
                cache_seqlens=t,
                ridge=0.5,
                backend="blockwise",
            )
            for t in range(70)
        ]
    assert_within_budget(torch.cat(steps, 1).cpu(), full.double().cpu(), torch.float32, 0.5)


def test_a_model_trains_and_generates():
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab_size=16, dim=32, depth=2, heads=2)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.arange(65, device="cuda").remainder(7).expand(4, -1)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    generated = generate(model.eval(), tokens[:1, :20], max_new_tokens=10)
    assert generated.shape == (1, 30)
