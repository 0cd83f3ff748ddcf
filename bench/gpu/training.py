"""A training step of a small language model: forward, backward and AdamW, with different token mixers."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flashlla.models import LanguageModel, LanguageModelConfig
from flashlla.models.mixers import MIXERS, AttentionMixer
from flashlla.nn import SoftmaxAttention
from gpu.calls import SDPA, sdpa

MIXER_NAMES = ("lla", "parallax", "softmax", "sdpa")


class Shape(NamedTuple):
    """Sizes of a model and of what it is trained on."""

    vocab: int
    dim: int
    depth: int
    heads: int
    n: int
    batch: int


FULL = Shape(vocab=32768, dim=768, depth=12, heads=12, n=4096, batch=4)
WARM_UP = Shape(vocab=256, dim=768, depth=1, heads=12, n=4096, batch=1)
TINY = Shape(vocab=64, dim=32, depth=1, heads=2, n=16, batch=1)


class SdpaAttention(SoftmaxAttention):
    """Softmax attention by PyTorch's flash kernel, in the layer that our kernels run in."""

    @staticmethod
    def _dense(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: int | None, backend: str
    ) -> Tensor:
        return sdpa(SDPA["sdpa flash"], q, k, v)


class Trainer:
    """A model with a mixer, its optimizer, and a batch of random tokens.

    Parameters are float32; a GPU computes under autocast to bfloat16.
    """

    def __init__(self, mixer: str, shape: Shape, device: torch.device):
        torch.manual_seed(0)
        self.shape, self.device = shape, device
        with mock.patch.dict(MIXERS, {"sdpa": partial(AttentionMixer, SdpaAttention)}):
            config = LanguageModelConfig(
                vocab_size=shape.vocab, dim=shape.dim, depth=shape.depth, heads=shape.heads, mixer=mixer
            )
            self.model = LanguageModel(config, device=device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.tokens = torch.randint(shape.vocab, (shape.batch, shape.n + 1), device=device)

    def step(self) -> Tensor:
        """One step; the loss."""
        half = (
            torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()
        )
        # Named, not chosen: a kernel that fails must not be replaced in silence.
        with mock.patch.dict(os.environ, {"FLASHLLA_BACKEND": "triton"}), half:
            logits = self.model(self.tokens[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def measure(session) -> None:
    """Rows with tokens a second for every mixer."""
    shape = TINY if session.interpreted else FULL._replace(batch=min(FULL.batch, session.batch))
    if session.quick and not session.interpreted:
        shape = shape._replace(depth=2, batch=1)
    for mixer in MIXER_NAMES:
        with session.attempt("training", mixer=mixer, **shape._asdict()) as row:
            if not session.interpreted:
                session.require_trusted(mixer, shape.dim // shape.heads, variations=("training",))
            trainer = Trainer(mixer, shape, session.device)
            timing = session.timer.measure(trainer.step, graph=False)
            row |= {
                "parameters": trainer.model.num_parameters(),
                "ms": timing.ms,
                "method": timing.method,
                "tokens_per_second": shape.batch * shape.n / timing.ms * 1e3,
            }
