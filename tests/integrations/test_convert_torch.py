"""torch.nn.MultiheadAttention and torch's transformers, converted: what stays, what is new, what goes."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from flashlla.integrations import convert
from flashlla.nn import MultiheadAttention, ParallaxMultiheadAttention

DIM, HEADS = 16, 4
CLASSES = {"lla": MultiheadAttention, "parallax": ParallaxMultiheadAttention}
NEW = {"lla": {"ridge.raw", "gate.raw"}, "parallax": {"r_scale", "r_proj.weight", "r_proj.bias"}}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}

both_targets = pytest.mark.parametrize("to", CLASSES)
float64_and_32 = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def draw(generator):
    def draw(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


def attention(**options):
    module = nn.MultiheadAttention(DIM, HEADS, **{"dtype": torch.float64, **options})
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
    return module


def open_correction(module):
    """Away from the start, where every member of the family is softmax attention."""
    for name, p in module.named_parameters():
        if name.endswith(("gate.raw", "r_scale")):
            nn.init.ones_(p)


def padding(*lengths, size):
    return torch.arange(size) >= torch.tensor(lengths)[:, None]


# ---- the module by itself ------------------------------------------------------------------------------


@both_targets
@float64_and_32
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("widths", ({}, {"kdim": 10, "vdim": 12}), ids=("one width", "kdim and vdim"))
def test_outputs_are_unchanged(widths, bias, batch_first, training, dtype, to, draw):
    module = attention(batch_first=batch_first, bias=bias, dtype=dtype, **widths).train(training)
    query = draw(3, 5, DIM, dtype=dtype)
    key = draw(3, 7, widths.get("kdim", DIM), dtype=dtype)
    value = draw(3, 7, widths.get("vdim", DIM), dtype=dtype)
    if not batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    mask = padding(7, 4, 1, size=7)
    before = [module(query, key, value)[0], module(query, key, value, mask)[0]]
    assert convert(module, to) is module
    assert type(module) is CLASSES[to] and module.training == training
    after = [module(query, key, value)[0], module(query, key, value, mask)[0]]
    torch.testing.assert_close(after, before, rtol=0, atol=TOLERANCE[dtype])
    open_correction(module)
    assert (module(query, key, value)[0] - before[0]).abs().max() > 1e-3


@both_targets
@float64_and_32
@pytest.mark.parametrize("mask_dtype", (torch.bool, None), ids=("bool", "float"))
def test_causal_outputs_are_unchanged(mask_dtype, dtype, to, draw):
    module, x = attention(batch_first=True, dtype=dtype), draw(3, 6, DIM, dtype=dtype)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    if mask_dtype is None:
        mask = torch.zeros(6, 6, dtype=dtype).masked_fill(mask, -torch.inf)
    before = module(x, x, x, attn_mask=mask, need_weights=False)[0]
    convert(module, to)
    for options in ({"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}):
        torch.testing.assert_close(module(x, x, x, **options)[0], before, rtol=0, atol=TOLERANCE[dtype])


@both_targets
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_low_precision_outputs_are_unchanged_to_rounding(dtype, to, draw):
    module, x = attention(batch_first=True, dtype=dtype), draw(4, 32, DIM, dtype=dtype)
    before = module(x, x, x, need_weights=False)[0].double()
    after = convert(module, to)(x, x, x)[0].double()
    assert (after - before).norm() <= torch.finfo(dtype).eps * before.norm()


@both_targets
def test_what_a_module_is_and_has_stays(to, draw):
    module = attention(batch_first=True, dtype=torch.float32).eval()
    module.in_proj_weight.requires_grad_(False)
    seen = []
    module.register_forward_hook(lambda *_: seen.append("behind"))
    module.register_forward_pre_hook(lambda *_: seen.append("before"))
    parameters = dict(module.named_parameters())
    convert(module, to)
    now = dict(module.named_parameters())
    assert set(now) - set(parameters) == NEW[to]
    assert all(now[name] is p for name, p in parameters.items())
    assert not now["in_proj_weight"].requires_grad
    new = [now[name] for name in NEW[to]]
    assert all(p.requires_grad and p.dtype == torch.float32 for p in new)
    assert not any(m.training for m in module.modules())
    x = draw(2, 3, DIM, dtype=torch.float32)
    module(x, x, x)
    assert seen == ["before", "behind"]


@both_targets
def test_it_is_as_if_it_had_been_built_so(to, draw):
    converted, x = convert(attention(), to), draw(2, 3, DIM)
    options = {"gate": "learned", "ridge": "learned"} if to == "lla" else {}
    built = CLASSES[to](DIM, HEADS, dtype=torch.float64, **options)
    open_correction(converted)
    assert list(converted.state_dict()) == list(built.state_dict())
    assert vars(converted).keys() == vars(built).keys()
    built.load_state_dict(converted.state_dict())
    torch.testing.assert_close(built(x, x, x), converted(x, x, x), rtol=0, atol=0)
    for copied in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        torch.testing.assert_close(copied(x, x, x), converted(x, x, x), rtol=0, atol=0)


@both_targets
def test_a_module_on_the_meta_device_stays_there(to):
    module = convert(attention(device="meta"), to)
    assert all(p.is_meta for p in module.parameters())


def test_only_the_options_decide_where_a_module_starts():
    """Of Parallax the projection is random, of LLA nothing."""
    state = torch.get_rng_state()
    module = convert(attention(), ridge=0.5, gate="learned", gate_init=0.25)
    torch.set_rng_state(state)
    attention()
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    module = convert(attention(), ridge=0.5, gate="learned", gate_init=0.25)
    assert torch.equal(torch.get_rng_state(), after)
    assert module.ridge() == 0.5 and torch.equal(module.gate(), torch.full((HEADS,), 0.25).double())
    module = convert(attention(), ridge_init=3.0)
    torch.testing.assert_close(module.ridge(), torch.full((HEADS,), 3.0).double())


# ---- torch's layers and models -------------------------------------------------------------------------


@both_targets
@float64_and_32
@pytest.mark.parametrize("norm_first", (True, False))
@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("training", (True, False))
def test_an_encoder_computes_what_it_did(training, batch_first, norm_first, dtype, to, draw):
    """In evaluation torch's own takes a fused path, and nested tensors for padding: ours takes neither."""
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 32, dropout=0.0, batch_first=batch_first, norm_first=norm_first, dtype=dtype
    )
    nested = batch_first and not norm_first
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).train(training)
    x, hidden = draw(3, 6, DIM, dtype=dtype), padding(6, 4, 1, size=6)
    real = ~hidden if batch_first else ~hidden.T
    x = x if batch_first else x.transpose(0, 1)
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=dtype)

    def outputs():
        with torch.set_grad_enabled(training):
            yield encoder(x)
            yield encoder(x, src_key_padding_mask=hidden)[real]
            yield encoder(x, mask=causal, is_causal=True)

    before = list(outputs())
    assert convert(encoder, to) is encoder
    tolerance = 2 * TOLERANCE[dtype]  # of two layers
    torch.testing.assert_close(list(outputs()), before, rtol=0, atol=tolerance)
    open_correction(encoder)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(outputs(), before, strict=True))


@both_targets
@float64_and_32
@pytest.mark.parametrize("training", (True, False))
def test_a_transformer_computes_what_it_did(training, dtype, to, draw):
    model = nn.Transformer(DIM, HEADS, 1, 1, 32, dropout=0.0, batch_first=True, dtype=dtype).train(training)
    source, target = draw(3, 7, DIM, dtype=dtype), draw(3, 5, DIM, dtype=dtype)
    options = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=dtype),
        "src_key_padding_mask": padding(7, 5, 1, size=7),
        "memory_key_padding_mask": padding(7, 5, 1, size=7),
        "tgt_is_causal": True,
    }
    before = model(source, target, **options)
    convert(model, to)
    assert sum(isinstance(m, CLASSES[to]) for m in model.modules()) == 3
    torch.testing.assert_close(model(source, target, **options), before, rtol=0, atol=3 * TOLERANCE[dtype])


@both_targets
def test_a_decoder_layer_alone(to, draw):
    layer = nn.TransformerDecoderLayer(DIM, HEADS, 32, dropout=0.0, dtype=torch.float64)
    target, memory = draw(5, 3, DIM), draw(7, 3, DIM)
    before = layer(target, memory)
    torch.testing.assert_close(convert(layer, to)(target, memory), before, rtol=0, atol=1e-12)


class Shared(nn.Module):
    """One attention at two places of a model, which also keeps it in a list."""

    def __init__(self):
        super().__init__()
        self.first = attention(batch_first=True)
        self.blocks = nn.ModuleDict({"second": self.first})
        self.unregistered = [self.first]

    def forward(self, x):
        for module in (self.first, self.blocks["second"], *self.unregistered):
            x = x + module(x, x, x, need_weights=False)[0]
        return x


@both_targets
def test_a_shared_module_stays_shared(to, draw):
    model, x = Shared(), draw(2, 4, DIM)
    before = model(x)
    convert(model, to)
    assert model.first is model.blocks["second"] is model.unregistered[0]
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)


@both_targets
def test_what_was_compiled_before_is_compiled_anew(to, draw):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    compiled, x = torch.compile(layer, backend="eager"), draw(2, 4, DIM)
    compiled(x)
    convert(layer, to)
    open_correction(layer)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-12)


# ---- dropout -------------------------------------------------------------------------------------------


def test_dropout_on_weights_is_dropped_with_one_warning():
    model = nn.Transformer(DIM, HEADS, 1, 1, 32, dropout=0.1, batch_first=True)
    with pytest.warns(
        UserWarning, match=r"dropout=0\.1 .* of encoder\.layers\.0\.self_attn and 2 more"
    ) as caught:
        convert(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(m.dropout == 0 for m in model.modules() if isinstance(m, MultiheadAttention))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}


def test_no_dropout_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0))


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"dropout=0\.1"):
            convert(layer)
    assert type(layer.self_attn) is nn.MultiheadAttention and layer.self_attn.dropout == 0.1


# ---- training ------------------------------------------------------------------------------------------


@both_targets
def test_an_optimizer_built_before_goes_on_with_the_weights(to, draw):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    old = list(layer.parameters())
    optimizer, x = torch.optim.AdamW(old, lr=0.01), draw(2, 5, DIM)
    layer(x).square().sum().backward()
    optimizer.step()
    convert(layer, to)
    new = [p for p in layer.parameters() if all(p is not o for o in old)]
    optimizer.add_param_group({"params": new})
    before = [p.detach().clone() for p in (*old, *new)]
    optimizer.zero_grad()
    (layer(x) - x).square().sum().backward()
    optimizer.step()
    ways = {
        name: not torch.equal(p, b) for (name, p), b in zip(layer.named_parameters(), before, strict=False)
    }
    assert ways["self_attn.in_proj_weight"] and ways["self_attn.out_proj.weight"] and ways["linear1.weight"]
    opened = layer.self_attn.gate.raw if to == "lla" else layer.self_attn.r_scale
    assert bool((opened != 0).all())


@both_targets
def test_the_correction_alone_learns_what_softmax_attention_cannot(to, draw):
    """Frozen weights; the target is local linear attention with the same ones."""
    module, x = attention(batch_first=True).requires_grad_(False), draw(8, 12, DIM)
    teacher = convert(copy.deepcopy(module), ridge=0.5, gate=None)
    with torch.no_grad():
        target = teacher(x, x, x, is_causal=True)[0]
    convert(module, to)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=0.05), []
    for _ in range(80):
        loss = (module(x, x, x, is_causal=True)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            opening = module.gate.raw if to == "lla" else module.r_scale
            assert bool((opening.grad != 0).all())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < {"lla": 0.01, "parallax": 0.7}[to] * losses[0]
