"""The three attention layers: equal where they should be, and right about positions, masks and caches."""

import copy

import pytest
import torch

from flashlla.nn import KVCache, LocalLinearAttention, ParallaxAttention, SoftmaxAttention

LAYERS = (LocalLinearAttention, ParallaxAttention, SoftmaxAttention)
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda c: c.__name__)


def make(layer, dim=32, heads=4, *, seed=0, dtype=torch.float64, **options):
    """A layer away from its special start: Parallax with a probe."""
    torch.manual_seed(seed)
    module = layer(dim, heads, dtype=dtype, **options)
    if layer is ParallaxAttention:
        torch.nn.init.normal_(module.r_scale)
    return module


@pytest.fixture
def x(generator):
    return torch.randn(2, 11, 32, generator=generator, dtype=torch.float64)


def test_the_family_meets_in_softmax(x):
    def at_seed(layer, **options):
        torch.manual_seed(3)
        return layer(32, 4, kv_heads=2, dtype=torch.float64, **options)(x)

    softmax = at_seed(SoftmaxAttention)
    assert torch.equal(at_seed(ParallaxAttention), softmax)
    assert torch.equal(at_seed(LocalLinearAttention, gate=0.0), softmax)
    torch.testing.assert_close(at_seed(LocalLinearAttention, ridge=1e10), softmax, rtol=0, atol=1e-8)
    assert (at_seed(LocalLinearAttention) - softmax).abs().max() > 1e-3


def test_softmax_is_torchs(x):
    module = make(SoftmaxAttention, rotary=False)
    q, k, v = (
        norm(proj(x).unflatten(-1, (4, 8))).transpose(1, 2)
        for proj, norm in (
            (module.q_proj, module.q_norm),
            (module.k_proj, module.k_norm),
            (module.v_proj, torch.nn.Identity()),
        )
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(module(x), module.out_proj(expected.transpose(1, 2).flatten(-2)))


@every_layer
@pytest.mark.parametrize("qk_norm", (True, False))
def test_gradients_reach_every_parameter(layer, qk_norm, x):
    options = {} if layer is SoftmaxAttention else {"gate": "learned"}
    module = make(layer, kv_heads=2, value_dim=6, qk_norm=qk_norm, bias=True, **options)
    (module(x) ** 2).sum().backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_parallax_wakes_up_from_its_zero_start(x):
    torch.manual_seed(0)
    module = ParallaxAttention(32, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (module(x) ** 2).sum().backward()
        optimizer.step()
    assert (module.r_scale.abs() > 0).all()
    assert module.r_proj.weight.grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_learned_ridge_and_gate_start_where_they_should():
    for start in (1e-3, 1.0, 50.0):
        module = LocalLinearAttention(32, 4, ridge_init=start, gate="learned", gate_init=0.25)
        torch.testing.assert_close(module.ridge(), torch.full((4,), start))
        torch.testing.assert_close(module.gate(), torch.full((4,), 0.25))
    assert LocalLinearAttention(32, 4, dtype=torch.bfloat16).ridge().dtype == torch.float32
    fixed = LocalLinearAttention(32, 4, ridge=0.5)
    assert not [name for name in fixed.state_dict() if "ridge" in name or "gate" in name]


def test_every_head_has_its_own_ridge(x):
    module = make(LocalLinearAttention)
    with torch.no_grad():
        module.out_proj.weight[:] = torch.eye(32)
        out = module(x).unflatten(-1, (4, 8))
        module.ridge.raw[2] += 1
        changed = (module(x).unflatten(-1, (4, 8)) != out).any(-1).any(1).any(0)
    assert changed.tolist() == [False, False, True, False]


@every_layer
def test_grouped_heads_are_repeated_heads(layer, x):
    grouped, full = make(layer, kv_heads=2), make(layer)
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(full(x), grouped(x))


@every_layer
def test_window_hides_all_but_the_last_keys(layer, x):
    module = make(layer, window_size=4)
    other = x.clone()
    other[:, 3] += 1.0
    changed = (module(x) != module(other)).any(-1)
    assert changed.any(0).tolist() == [False] * 3 + [True] * 4 + [False] * 4


@every_layer
@pytest.mark.parametrize("window_size", (None, 3))
def test_cached_steps_equal_one_pass(layer, window_size, x, poisoned_memory):
    module = make(layer, kv_heads=2, value_dim=6, window_size=window_size)
    expected = module(x)
    with torch.no_grad():
        cache = module.make_cache(2, 11)
        pieces = [module(piece, cache=cache) for piece in x.split([5, 1, 1, 2, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected)
    assert cache.lengths.tolist() == [11, 11]


@every_layer
def test_cache_rows_of_different_lengths(layer, x):
    module = make(layer)
    with torch.no_grad():
        cache = module.make_cache(2, 20)
        padded = x[:, :6]
        module(padded, cache=cache)
        cache.truncate(torch.tensor([6, 2]))  # the second prompt has two tokens and four of padding
        step = module(x[:, 6:8], cache=cache)
    torch.testing.assert_close(step[0], module(x[:1, :8])[0, 6:])
    short = torch.cat([x[1:, :2], x[1:, 6:8]], 1)
    torch.testing.assert_close(step[1], module(short)[0, 2:])
    assert cache.lengths.tolist() == [8, 4] and cache.longest == 8


@every_layer
def test_packed_equals_singles(layer, x):
    module = make(layer, kv_heads=2, window_size=5)
    cu_seqlens = torch.tensor([0, 4, 4, 11], dtype=torch.int32)
    packed = module(x[0], cu_seqlens=cu_seqlens)
    torch.testing.assert_close(packed[:4], module(x[:1, :4])[0])
    torch.testing.assert_close(packed[4:], module(x[:1, 4:])[0])


@every_layer
def test_context_is_the_source_of_keys(layer, x):
    module = make(layer)
    torch.testing.assert_close(module(x, context=x), module(x))
    # The last rows of both meet: a suffix of the sequence attends as it does within the whole.
    torch.testing.assert_close(module(x[:, -3:], context=x), module(x)[:, -3:])
    free = make(layer, causal=False)
    torch.testing.assert_close(free(x[:, :3], context=x), free(x)[:, :3])


def test_rotary_is_relative_and_matters(x):
    module, plain = make(SoftmaxAttention, causal=False), make(SoftmaxAttention, causal=False, rotary=False)
    order = torch.arange(10, -1, -1)
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    assert not torch.allclose(module(x[:, order]), module(x)[:, order])
    windowed = make(SoftmaxAttention, window_size=3)  # each output sees three rows, wherever they stand
    torch.testing.assert_close(windowed(x)[:, 8], windowed(x[:, 6:9])[:, 2])


@every_layer
def test_bfloat16_and_autocast(layer, x):
    exact = make(layer)
    expected, x = exact(x), x.float()
    single = copy.deepcopy(exact).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = single(x)
        with torch.no_grad():
            cached = single(x, cache=single.make_cache(2, 11))
    assert out.dtype == cached.dtype == torch.bfloat16
    for low in (out, cached, copy.deepcopy(exact).bfloat16()(x.bfloat16())):
        assert (low.double() - expected).norm() < 0.05 * expected.norm()
    out.float().sum().backward()
    assert all(p.grad is not None for p in single.parameters())


def test_a_cache_may_be_narrower_than_the_layer(x):
    module = make(LocalLinearAttention, dtype=torch.float32)
    with torch.no_grad():
        out = module(x.float(), cache=module.make_cache(2, 11, dtype=torch.bfloat16))
        expected = module(x.float())
    assert out.dtype == torch.float32
    assert (out - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("layer", "compiler"),
    (
        *((layer, "aot_eager") for layer in LAYERS),
        pytest.param(LocalLinearAttention, "inductor", marks=pytest.mark.slow),
    ),
)
def test_compiles_as_one_graph(layer, compiler, x):
    torch._dynamo.reset()
    module, x = make(layer, dtype=torch.float32), x.float()
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(x), module(x))
    (compiled(x) ** 2).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_compiled_decoding_does_not_compile_for_every_token(x):
    torch._dynamo.reset()
    module, x = make(LocalLinearAttention, dtype=torch.float32), x.float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")  # at most eight compilations
    with torch.no_grad():
        cache = module.make_cache(2, 11)
        steps = [compiled(piece, cache=cache) for piece in x.split(1, 1)]
    torch.testing.assert_close(torch.cat(steps, 1), module(x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"heads": 3}, ValueError, "dim=32 is no multiple of heads=3"),
        ({"kv_heads": 3}, ValueError, "heads=4 is no multiple of kv_heads=3"),
        ({"heads": 0}, ValueError, "heads=0 must be at least 1"),
        ({"head_dim": 8.0}, TypeError, "head_dim must be an int"),
        ({"head_dim": 7}, ValueError, "head_dim=7 must be even"),
        ({"head_dim": 258}, ValueError, "head_dim=258 is above the limit of 256"),
        ({"rope_base": 0.0}, ValueError, "rope_base=0.0"),
        ({"window_size": 0}, ValueError, "window_size=0"),
        ({"window_size": 4, "causal": False}, ValueError, "needs causal=True"),
        ({"backend": "fast"}, ValueError, "backend='fast' is unknown"),
        ({"ridge": 0.0}, ValueError, "ridge=0.0 must be greater than 0"),
        ({"ridge": "big"}, ValueError, "ridge='big' is unknown"),
        ({"ridge": None}, TypeError, "ridge must be a float"),
        ({"ridge_init": -1.0}, ValueError, "ridge_init=-1.0"),
        ({"gate": float("nan")}, ValueError, "gate=nan must be finite"),
        ({"solver": "magic"}, ValueError, "solver='magic'"),
        ({"rtol": 2.0}, ValueError, "rtol=2.0"),
        ({"max_iters": 0}, ValueError, "max_iters=0"),
        ({"windowsize": 4}, TypeError, "windowsize"),
    ),
)
def test_wrong_constructor_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LocalLinearAttention(**{"dim": 32, "heads": 4, **options})


def test_wrong_calls(x):
    module = make(SoftmaxAttention)
    cache = module.make_cache(2, 8)
    for error, message, args in (
        (TypeError, "x must be a torch.Tensor", ([1.0], {})),
        (ValueError, r"x has shape \(11, 32\)", (x[0], {})),
        (ValueError, r"expected \[batch, seq, 32\]", (x[..., :31], {})),
        (ValueError, "context has batch 1 and x has 2", (x, {"context": x[:1]})),
        (ValueError, "context and cache do not go together", (x, {"context": x, "cache": cache})),
        (ValueError, r"expected \[total, 32\]", (x, {"cu_seqlens": torch.tensor([0, 11])})),
        (TypeError, "cu_seqlens must be", (x[0], {"cu_seqlens": [0, 11]})),
        (ValueError, "cu_seqlens ends at 7", (x[0], {"cu_seqlens": torch.tensor([0, 7])})),
        (TypeError, "cache must be a cache of flashlla.nn", (x, {"cache": {}})),
        (ValueError, r"cache has \(batch, kv_heads", (x[:1], {"cache": cache})),
        (ValueError, "cache overflow: 0 rows plus 11 new", (x, {"cache": cache})),
        (NotImplementedError, "no gradient", (x[:, :3], {"cache": cache})),
    ):
        with pytest.raises(error, match=message):
            module(args[0], **args[1])
    assert cache.longest == 0 and cache.lengths.tolist() == [0, 0]
    with pytest.raises(ValueError, match="causal=True"):
        make(SoftmaxAttention, causal=False)(x, cache=KVCache(2, 11, 4, 8, dtype=x.dtype))
