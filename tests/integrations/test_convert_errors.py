"""What ``convert`` does not take: it says so, and changes nothing."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flashlla.integrations import convert
from flashlla.nn import LocalLinearAttention, MultiheadAttention, SoftmaxAttention

DIM, HEADS = 16, 4


class Attention(nn.MultiheadAttention):
    """Somebody's subclass."""


class WrittenOut(nn.Module):
    """Attention that is no module."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


def snapshot(model):
    """All that a conversion could change, by identity."""
    modules = [(name, type(module), module.__dict__.copy()) for name, module in model.named_modules()]
    return modules, [(name, id(p)) for name, p in model.named_parameters()]


def parts(**last):
    """A model whose last part is the trouble: everything before it could be converted."""
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True), 1
    )
    return nn.ModuleDict({"encoder": encoder, "own": SoftmaxAttention(DIM, HEADS), **last})


def quantised():
    module = nn.MultiheadAttention(DIM, HEADS)
    module.out_proj.weight = nn.Parameter(torch.zeros(DIM, DIM, dtype=torch.float8_e5m2), requires_grad=False)
    return module


@pytest.mark.parametrize("to", ("lla", "parallax"))
@pytest.mark.parametrize(
    ("last", "error", "message"),
    (
        (
            lambda: nn.MultiheadAttention(DIM, HEADS, add_bias_kv=True),
            NotImplementedError,
            "last has add_bias_kv",
        ),
        (
            lambda: nn.MultiheadAttention(DIM, HEADS, add_zero_attn=True),
            NotImplementedError,
            "add_zero_attn=True",
        ),
        (lambda: nn.MultiheadAttention(257, 1), ValueError, "is above the limit of 256"),
        (lambda: Attention(DIM, HEADS), NotImplementedError, "last is a Attention, a subclass"),
        (quantised, TypeError, "last has parameters of dtype torch.float8_e5m2"),
    ),
    ids=("bias_kv", "zero_attn", "head_dim", "subclass", "dtype"),
)
def test_all_or_nothing(last, error, message, to):
    model = parts(last=last())
    before = snapshot(model)
    with pytest.raises(error, match=message):
        convert(model, to)
    assert snapshot(model) == before
    convert(model.encoder, to)  # the parts that can be, one by one
    convert(model.own, to)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"to": "softmax"}, ValueError, "to='softmax' is unknown; choose one of lla, parallax"),
        ({"ridge": -1.0}, ValueError, "ridge=-1.0 must be greater than 0"),
        ({"ridge": "fixed"}, ValueError, "ridge='fixed' is unknown"),
        ({"ridge_init": 0.0}, ValueError, "ridge_init=0.0"),
        ({"gate": "open"}, ValueError, "gate='open'"),
        ({"gate_init": "zero"}, TypeError, "gate_init must be a float"),
        ({"to": "parallax", "ridge_init": 2.0}, ValueError, "ridge_init=2.0 is for to='lla'"),
        ({"to": "parallax", "gate": None}, ValueError, "gate=None is for to='lla'"),
    ),
)
def test_wrong_options(options, error, message):
    model = parts()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        convert(model, **options)
    assert snapshot(model) == before


def test_nothing_to_convert():
    for model in (nn.Linear(2, 2), WrittenOut()):
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} has nothing to convert: looked for torch"
        ):
            convert(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        convert("model")


def test_converted_twice():
    model = convert(parts())
    before = snapshot(model)
    with pytest.raises(
        ValueError, match="ModuleDict has nothing to convert: its 2 attention layers are converted"
    ):
        convert(model, "parallax")
    assert snapshot(model) == before


def test_what_is_converted_already_stays_as_it_is():
    done = MultiheadAttention(DIM, HEADS, ridge=3.0)
    model = convert(nn.ModuleList([done, nn.MultiheadAttention(DIM, HEADS)]), "parallax")
    assert model[0] is done and type(done) is MultiheadAttention and done.ridge() == 3.0
    assert type(convert(parts()).own) is LocalLinearAttention


def test_wrapped_and_sharded_models():
    """Wrappers have to be built around a model that has all its parameters."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        wrapped = nn.parallel.DistributedDataParallel(parts())
        with pytest.raises(ValueError, match="DistributedDataParallel, which would not know"):
            convert(wrapped)
        model, mesh = parts(), init_device_mesh("cpu", (1,))
        weight = distribute_tensor(model.own.q_proj.weight.data, mesh, [Shard(0)])
        model.own.q_proj.weight = nn.Parameter(weight)
        before = snapshot(model)
        with pytest.raises(ValueError, match="own has sharded parameters; convert the model before"):
            convert(model)
        assert snapshot(model) == before
    finally:
        torch.distributed.destroy_process_group()


def test_transformers_is_not_imported_and_models_of_it_are_passed_on():
    """With a stand-in: what is tested is who is asked, not what is answered."""
    code = """
import sys, types, torch
from torch import nn
from flashlla.integrations import convert
model = nn.MultiheadAttention(16, 4)
convert(model)
assert not any(name.split(".")[0] == "transformers" for name in sys.modules)

class PreTrainedModel(nn.Module):
    pass

asked = []
def convert_attention(model, to, **options):
    asked.append((to, options))
    return model

for name, content in {
    "transformers.modeling_utils": {"PreTrainedModel": PreTrainedModel},
    "flashlla.integrations.transformers": {"convert_attention": convert_attention},
}.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)
model = PreTrainedModel()
assert convert(model, "parallax") is model
assert asked == [("parallax", {"ridge": "learned", "ridge_init": 1.0, "gate": "learned", "gate_init": 0.0})]
try:
    convert(nn.ModuleDict({"backbone": model, "head": nn.MultiheadAttention(16, 4)}))
except NotImplementedError as error:
    assert "backbone is a PreTrainedModel of transformers inside another model" in str(error)
else:
    raise AssertionError("converted by halves")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
