"""What serving with vLLM computes, without vLLM: steps over pages against attention over whole sequences."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flashlla import lla_attention, softmax_attention
from flashlla.integrations import vllm as plugin
from flashlla.integrations.settings import Settings
from flashlla.integrations.vllm.batches import attend, make_batch, write
from flashlla.integrations.vllm.layers import check_layer

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 8, 4
SCALE = 0.3
NOT_A_PAGE = 12345


@dataclass
class Server:
    """A cache in vLLM's layout and the requests that it serves; page 0 belongs to none of them.

    Args:
        order: of the four dimensions of the cache in memory: blocks, heads, rows of a block, contents.
    """

    generator: torch.Generator
    order: tuple[int, ...] = (0, 2, 1, 3)
    dtype: torch.dtype = torch.float64
    window_size: int | None = None
    settings: Settings = field(default_factory=lambda: Settings(ridge=0.5))
    pages: int = 60
    device: str = "cpu"

    def __post_init__(self):
        shape = (self.pages, KV_HEADS, PAGE, 2 * DIM)
        sizes = [shape[i] for i in self.order]
        memory = torch.full(sizes, torch.nan, dtype=self.dtype, device=self.device)
        self.cache = memory.permute([self.order.index(i) for i in range(4)])
        self.cache[0] = 0
        self.free = (1 + torch.randperm(self.pages - 1, generator=self.generator)).tolist()
        self.seen, self.tables = {}, {}

    def draw(self, heads: int, tokens: int) -> torch.Tensor:
        new = torch.randn(tokens, heads, DIM, generator=self.generator, dtype=torch.float64)
        return new.to(self.device, self.dtype)

    def step(self, new: dict[str, int], padding: int = 0) -> dict[str, torch.Tensor]:
        """Outputs of the new tokens of each request, in the order in which they are given."""
        inputs = {name: [self.draw(h, n) for h in (HEADS, KV_HEADS, KV_HEADS)] for name, n in new.items()}
        slots = [self.slots(name, n) for name, n in new.items()]
        for name, tensors in inputs.items():
            old = self.seen.get(name, [t[:0] for t in tensors])
            self.seen[name] = [torch.cat(pair) for pair in zip(old, tensors, strict=True)]
        counts = torch.tensor(list(new.values()), dtype=torch.int32)
        start = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        lengths = torch.tensor([len(self.seen[name][0]) for name in new], dtype=torch.int32)
        q, k, v = (torch.cat(tensors) for tensors in zip(*inputs.values(), strict=True))
        q, k, v = (torch.cat([t, torch.full_like(t[:1], torch.nan).repeat(padding, 1, 1)]) for t in (q, k, v))
        batch = make_batch(
            start.to(self.device),
            lengths.to(self.device),
            self.block_table(new).to(self.device),
            query_start_cpu=start,
            lengths_cpu=lengths,
            page_size=PAGE,
            window_size=self.window_size,
        )
        views = self.cache.transpose(1, 2).split(DIM, -1)
        write(*views, k, v, torch.cat([*slots, torch.full((padding,), -1)]).to(self.device))
        out = torch.full_like(q, 7.0)
        options = {"scale": SCALE, "window_size": self.window_size, "settings": self.settings}
        assert attend(q, *views, batch, out, **options) is out
        assert (out[len(out) - padding :] == 7).all() and not self.cache[0].any()
        return dict(zip(new, out[: len(out) - padding].split(list(new.values())), strict=True))

    def slots(self, name: str, tokens: int) -> torch.Tensor:
        table = self.tables.setdefault(name, [])
        first = len(self.seen[name][0]) if name in self.seen else 0
        while len(table) * PAGE < first + tokens:
            table.append(self.free.pop())
        position = torch.arange(first, first + tokens)
        return torch.tensor(table)[position // PAGE] * PAGE + position % PAGE

    def block_table(self, names) -> torch.Tensor:
        table = torch.full((len(names), 2 + max(len(self.tables[n]) for n in names)), NOT_A_PAGE)
        for row, name in enumerate(names):
            table[row, : len(self.tables[name])] = torch.tensor(self.tables[name])
        return table.int()

    def free_pages_before_the_window(self, name: str) -> None:
        """As vLLM does with pages that no later query sees: page 0 takes their place."""
        table = self.tables[name]
        for i in range((len(self.seen[name][0]) - self.window_size + 1) // PAGE):
            if table[i]:
                self.cache[table[i]] = torch.nan
                table[i] = 0

    def whole(self, name: str) -> torch.Tensor:
        q, k, v = (t.double().cpu()[None] for t in self.seen[name])
        ridge, gate = self.settings.ridge, self.settings.gate
        options = {"scale": SCALE, "window_size": self.window_size, "backend": "reference"}
        return lla_attention(q, k, v, ridge=ridge, gate=gate, **options)[0]


STEPS = (
    {"a": 11},  # a prompt
    {"a": 1, "b": 3, "c": 6},  # decoding beside two prompts
    {"a": 1, "b": 1, "c": 9, "d": 1},  # a prompt goes on behind its prefix; another has one token
    {"c": 5, "a": 1, "d": 2, "b": 1},  # in any order
    {"a": 1, "b": 1, "c": 1, "d": 1},  # decoding alone
    {"b": 1, "d": 17},
)


def serve(server: Server, steps=STEPS, **options) -> dict[str, torch.Tensor]:
    outs = {}
    for step in steps:
        for name, out in server.step(step, **options).items():
            outs.setdefault(name, []).append(out)
    return {name: torch.cat(pieces) for name, pieces in outs.items()}


@pytest.mark.parametrize("window_size", (None, 1, 6))
@pytest.mark.parametrize("order", ((0, 2, 1, 3), (0, 1, 2, 3), (1, 0, 2, 3)), ids=str)
def test_steps_give_what_whole_sequences_give(window_size, order, generator):
    server = Server(generator, order, window_size=window_size)
    for name, out in serve(server, padding=2).items():
        torch.testing.assert_close(out, server.whole(name), rtol=1e-9, atol=1e-9)


def check_kernels(server: Server, steps=STEPS) -> None:
    """Hold outputs to the rounding of their dtype."""
    for name, out in serve(server, steps).items():
        expected = server.whole(name)
        assert out.dtype == server.dtype
        error = (out.cpu() - expected).norm() / expected.norm()
        assert error < (1e-5 if server.dtype == torch.float32 else 2e-2)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("window_size", (None, 6))
def test_kernels_take_pages_as_they_lie(dtype, window_size, generator):
    check_kernels(Server(generator, dtype=dtype, window_size=window_size, settings=Settings(backend="cpu")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles its kernels here")
@pytest.mark.parametrize(("dtype", "window_size"), ((torch.bfloat16, None), (torch.float32, 6)), ids=str)
def test_kernels_of_a_gpu_take_pages_as_they_lie(dtype, window_size, generator):
    settings = Settings(backend="triton")
    server = Server(generator, dtype=dtype, window_size=window_size, settings=settings)
    check_kernels(server, STEPS[:3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window_size", (None, 6))
def test_steps_on_a_gpu(window_size, generator):
    check_kernels(Server(generator, dtype=torch.bfloat16, window_size=window_size, device="cuda"))


@pytest.mark.parametrize("settings", (Settings(), Settings(0.1, 0.5, "direct", 1e-10, 50, "blockwise")))
def test_the_settings_reach_both_calls(settings, generator):
    server = Server(generator, settings=settings)
    for name, out in serve(server).items():
        torch.testing.assert_close(out, server.whole(name), rtol=1e-6, atol=1e-6)


def test_a_gate_of_0_is_softmax_attention(generator):
    server = Server(generator, settings=Settings(gate=0.0))
    for name, out in serve(server).items():
        q, k, v = (t[None] for t in server.seen[name])
        torch.testing.assert_close(out, softmax_attention(q, k, v, scale=SCALE)[0])


def test_pages_before_every_window_may_be_given_back(generator):
    server = Server(generator, window_size=6)
    outs = {"a": [], "b": []}
    for step in ({"a": 14, "b": 1}, {"a": 9, "b": 10}, {"a": 1, "b": 7}, {"a": 1, "b": 1}, {"a": 13, "b": 1}):
        for name, out in server.step(step).items():
            outs[name].append(out)
            server.free_pages_before_the_window(name)
    assert server.tables["a"][0] == 0 and server.tables["b"][0] == 0
    for name, pieces in outs.items():
        torch.testing.assert_close(torch.cat(pieces), server.whole(name), rtol=1e-9, atol=1e-9)


def plan(counts, lengths, page_size=4, window_size=None, pages=9):
    start = torch.nn.functional.pad(torch.tensor(counts).cumsum(0), (1, 0)).int()
    table = torch.arange(len(counts) * pages).view(len(counts), pages).int()
    lengths = torch.tensor(lengths).int()
    sizes = {"page_size": page_size, "window_size": window_size}
    return make_batch(start, lengths, table, query_start_cpu=start, lengths_cpu=lengths, **sizes)


def test_leading_requests_of_one_token_are_decoded():
    batch = plan([1, 1, 5, 1], [8, 3, 9, 1])
    assert (batch.tokens, batch.decodes, batch.lengths.tolist()) == (8, 2, [8, 3])
    assert batch.block_table.tolist() == [[0, 1], [9, 10]]  # the pages that the longest of them uses
    assert batch.prompts.cu_seqlens.tolist() == [0, 5, 6]
    assert batch.prompts.cu_seqlens_k.tolist() == [0, 9, 10]
    assert batch.prompts.pages.tolist() == [18] * 4 + [19] * 4 + [20] + [27]
    assert batch.prompts.rows.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0]


def test_only_keys_that_a_window_reaches_are_gathered():
    batch = plan([3], [30], window_size=5)
    keys = batch.prompts.pages * 4 + batch.prompts.rows
    assert keys.tolist() == list(range(23, 30)) and batch.prompts.cu_seqlens_k.tolist() == [0, 7]


def test_steps_of_one_kind_and_requests_without_tokens():
    assert plan([1, 1], [4, 5]).prompts is None
    assert plan([7], [7]).decodes == 0
    batch = plan([1, 3, 0], [4, 3, 99])  # padding of the batch: its length may be anything
    assert (batch.tokens, batch.decodes) == (4, 1)
    assert batch.prompts.cu_seqlens_k.tolist() == [0, 3, 3]
    assert plan([1, 0], [4, 99]).prompts is None
    assert plan([0], [0]).tokens == 0


# ---- settings and refusals --------------------------------------------------------------------------------


def test_settings_are_read_from_the_configuration():
    assert Settings.of(SimpleNamespace()) == Settings(1.0, 1.0, "auto", None, None, "auto")
    text, whole = SimpleNamespace(lla_ridge=0.2), SimpleNamespace(lla_ridge=3, lla_gate=0, lla_solver="cg")
    assert Settings.of(text, whole) == Settings(ridge=0.2, gate=0, solver="cg")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    (
        ({"lla_ridge": [0.1, 0.2]}, TypeError, "lla_ridge must be a number for all layers, got list"),
        ({"lla_ridge": True}, TypeError, "lla_ridge must be a number"),
        ({"lla_ridge": 0.0}, ValueError, "lla_ridge=0.0 must be greater than 0"),
        ({"lla_gate": float("nan")}, ValueError, "lla_gate=nan must be finite"),
        ({"lla_solver": "lu"}, ValueError, "solver='lu' is unknown"),
        ({"lla_rtol": 2.0}, ValueError, "rtol=2.0 must lie between 0 and 1"),
        ({"lla_max_iters": 0}, ValueError, "max_iters=0 must be an int of at least 1"),
        ({"lla_backend": "flash"}, ValueError, "lla_backend='flash' is unknown"),
        ({"lla_backend": "cuda"}, ValueError, "lla_backend='cuda' does not take prompts"),
        ({"lla_conversion": {"to": "lla"}}, NotImplementedError, "learned ridges, gates or probes"),
    ),
)
def test_wrong_settings(values, error, message):
    with pytest.raises(error, match=message):
        Settings.of(SimpleNamespace(**values))


LAYER = {
    "head_size": 64,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "attn_type": "decoder",
    "alibi_slopes": None,
    "logits_soft_cap": None,
    "extra": {},
}


@pytest.mark.parametrize(
    "changes",
    ({}, {"kv_cache_dtype": "bfloat16"}, {"logits_soft_cap": 0}, {"extra": {"sinks": None, "lookback": -1}}),
)
def test_layers_that_are_served(changes):
    check_layer(**LAYER | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"head_size": 320}, "head_size=320: the limits are 1 and 256"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype='fp8': the cache holds keys in the dtype of the model"),
        ({"kv_cache_dtype": "float16"}, "kv_cache_dtype='float16'"),
        ({"attn_type": "encoder_only"}, "attn_type='encoder_only': only causal attention"),
        ({"alibi_slopes": [0.5]}, "alibi_slopes: biases of the logits"),
        ({"logits_soft_cap": 30.0}, "logits_soft_cap=30.0: soft caps"),
        ({"extra": {"sinks": torch.zeros(4)}}, "sinks is not supported; choose another --attention-backend"),
        ({"extra": {"use_alibi_sqrt": True}}, "use_alibi_sqrt is not supported"),
    ),
)
def test_layers_that_are_refused(changes, message):
    with pytest.raises(NotImplementedError, match=message):
        check_layer(**LAYER | changes)


# ---- registration -----------------------------------------------------------------------------------------


class Custom:
    """The member CUSTOM of vLLM's registry, and who has taken it."""

    path = None

    def is_overridden(self) -> bool:
        return self.path is not None

    def get_path(self) -> str:
        return self.path


@pytest.fixture
def custom(monkeypatch):
    """A registry in place of vLLM's."""
    custom = Custom()
    name = ""
    for part in ("vllm", "v1", "attention", "backends", "registry"):
        name = f"{name}.{part}".strip(".")
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    registry = sys.modules[name]
    registry.AttentionBackendEnum = SimpleNamespace(CUSTOM=custom)
    registry.register_backend = lambda backend, path: setattr(backend, "path", path)
    return custom


@pytest.mark.filterwarnings("error")
def test_register_takes_the_place_of_custom_and_may_be_repeated(custom):
    plugin.register()
    plugin.register()
    assert custom.path == "flashlla.integrations.vllm.backend.LocalLinearAttentionBackend"


def test_another_plugin_is_left_alone(custom):
    custom.path = "other.Backend"
    with pytest.warns(UserWarning, match=r"leaves the attention backend CUSTOM of vLLM to other.Backend"):
        plugin.register()
    assert custom.path == "other.Backend"


def test_a_vllm_without_a_registry_is_warned_about(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.registry", None)
    with pytest.warns(UserWarning, match=r"it needs vLLM 0.30 or later"):
        plugin.register()
