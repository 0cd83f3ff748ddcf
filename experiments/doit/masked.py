"""Tier 3: masked diffusion of short strings, where every state can be enumerated, guided without a gradient.

A state is a string with masks. One step of the reverse process draws a masked place, all of them alike, and a
symbol for it from the model. The model is asked once for every state; samplers look its answers up, and their
calls are counted as if they had asked.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import Encoder, EncoderConfig, training

from ..common.costs import costs
from ..common.training import train
from .metrics import total_variation

if TYPE_CHECKING:
    from .run import Trial

SYMBOLS = 2
MASK = SYMBOLS
STAY = 0.75  # probability that the next symbol is the same
PATTERN = (1, 0, 1)  # a string that has it is paid 1, any other 0
COUNTS = (4, 16)  # candidates of D-DOIT, and samples that the best is taken of


def encoder_config(mixer: str, dim: int, depth: int, heads: int) -> EncoderConfig:
    """Raises ValueError where sizes do not fit."""
    return EncoderConfig(
        vocab_size=SYMBOLS + 1, outputs=SYMBOLS, dim=dim, depth=depth, heads=heads, mixer=mixer
    )


def states(length: int) -> Tensor:
    """All strings with and without masks, int64 ``[3^length, length]``; :func:`index` is its inverse."""
    return torch.tensor(list(itertools.product(range(SYMBOLS + 1), repeat=length)))


def index(strings: Tensor) -> Tensor:
    """Where strings ``[..., length]`` stand among :func:`states`."""
    return strings @ _places(strings.shape[-1])


def _places(length: int) -> Tensor:
    return (SYMBOLS + 1) ** torch.arange(length - 1, -1, -1)


def law(strings: Tensor) -> Tensor:
    """Probabilities of whole strings under the Markov chain that the data come from, float64."""
    same = (strings[:, 1:] == strings[:, :-1]).sum(1).double()
    moves = strings.shape[1] - 1 - same
    return STAY**same * (1 - STAY) ** moves / SYMBOLS


def oracle(strings: Tensor) -> Tensor:
    """1 for strings ``[..., length]`` with the pattern in them, else 0."""
    windows = strings.unfold(-1, len(PATTERN), 1)
    return (windows == torch.tensor(PATTERN)).all(-1).any(-1).double()


def draw(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Strings of the chain, ``[count, length]``."""
    first = torch.randint(SYMBOLS, (count, 1), generator=generator)
    moves = torch.rand(count, length - 1, generator=generator) > STAY
    return torch.cat([first, (first + moves.cumsum(1)) % SYMBOLS], 1)


def learn(trial: Trial, folder: Path):
    """The model, which predicts masked symbols, each with a weight of 1 over the share of masks (arXiv
    2406.07524), and its history.
    """
    torch.manual_seed(trial.seed)
    model = Encoder(encoder_config(trial.mixer, trial.dim, trial.depth, trial.heads)).to(trial.device)

    def batch(generator: torch.Generator) -> tuple[Tensor, ...]:
        strings = draw(trial.batch, trial.length, generator)
        share = torch.rand(trial.batch, 1, generator=generator).clamp(min=0.1)
        masked = torch.rand(strings.shape, generator=generator) < share
        return tuple(x.to(trial.device) for x in (strings, masked, share))

    def loss(model: Encoder, batch: tuple[Tensor, ...]) -> Tensor:
        strings, masked, share = batch
        logits = model(strings.masked_fill(masked, MASK))
        errors = F.cross_entropy(logits.flatten(0, 1), strings.flatten(), reduction="none")
        return (errors.view_as(masked) * masked / share).mean()

    history = train(
        model,
        loss,
        batch,
        folder,
        steps=trial.encoder_steps,
        learning_rate=trial.encoder_rate,
        seed=trial.seed,
        optimizer="muon",
        weight_decay=0.0,
    )
    return model.eval().requires_grad_(False), history


@dataclass
class Chain:
    """The reverse process of a model, tabulated.

    Attributes:
        predictions: probabilities of symbols in every state, float64 ``[3^length, length, symbols]``.
        tau: temperature of the weight ``exp(oracle / tau)``.
        network_rows, reward_rows: of the samplers.
    """

    predictions: Tensor
    tau: float
    network_rows: int = 0
    reward_rows: int = 0

    @classmethod
    @torch.no_grad()
    def of(cls, model: Encoder, length: int, tau: float) -> Chain:
        device = model.embedding.weight.device
        return cls(model(states(length).to(device)).cpu().double().softmax(-1), tau)

    @property
    def length(self) -> int:
        return self.predictions.shape[1]

    # ---- what can be enumerated ---------------------------------------------------------------------

    def base_law(self) -> Tensor:
        """Probabilities of all states at the end; only whole strings have any."""
        found, everything = torch.zeros(len(self.predictions)).double(), states(self.length)
        found[-1] = 1.0  # all masks
        for masks in range(self.length, 0, -1):
            rows, targets, chances = self._moves(everything, masks)
            found.index_add_(0, targets.flatten(), (found[rows][:, None] * chances).flatten())
            found[rows] = 0.0
        return found

    def h(self) -> Tensor:
        """The expected weight of the end, from every state."""
        everything = states(self.length)
        found = (oracle(everything) / self.tau).exp()  # of whole strings; the others follow
        for masks in range(1, self.length + 1):
            rows, targets, chances = self._moves(everything, masks)
            found[rows] = (chances * found[targets]).sum(1)
        return found

    def target_law(self) -> Tensor:
        """The base law times the weight, over its sum."""
        weighted = self.base_law() * self.h()
        return weighted / weighted.sum()

    def _moves(self, everything: Tensor, masks: int) -> tuple[Tensor, Tensor, Tensor]:
        """States with so many masks, where a step leads from each, ``[states, moves]``, and how likely."""
        hidden = everything == MASK
        rows = (hidden.sum(1) == masks).nonzero()[:, 0]
        places = hidden[rows].nonzero()[:, 1].view(-1, masks)
        symbols = torch.arange(SYMBOLS)
        change = (symbols - MASK) * _places(self.length)[places][..., None]
        chances = self.predictions[rows[:, None], places] / masks
        return rows, (rows[:, None, None] + change).flatten(1), chances.flatten(1)

    # ---- sampling -----------------------------------------------------------------------------------

    def sample(self, count: int, generator: torch.Generator, choose: Choice | None = None) -> Tensor:
        """Strings ``[count, length]``; ``choose`` takes the next state in place of a draw."""
        strings = torch.full((count, self.length), MASK)
        for _ in range(self.length):
            self.network_rows += count
            strings = self.step(strings, generator) if choose is None else choose(self, strings, generator)
        return strings

    def step(self, strings: Tensor, generator: torch.Generator) -> Tensor:
        """One symbol more in each of ``[rows, length]``."""
        place = torch.multinomial((strings == MASK).double(), 1, generator=generator)
        rows = torch.arange(len(strings))[:, None]
        chances = self.predictions[index(strings)[:, None], place][:, 0]
        strings = strings.clone()
        strings[rows, place] = torch.multinomial(chances, 1, generator=generator)
        return strings

    def complete(self, strings: Tensor, generator: torch.Generator) -> Tensor:
        """All masks of ``[rows, length]`` filled at once from one prediction."""
        self.network_rows += len(strings)
        chances = self.predictions[index(strings)][..., 1]
        drawn = (torch.rand(strings.shape, generator=generator, dtype=torch.float64) < chances).long()
        return torch.where(strings == MASK, drawn, strings)

    def weights(self, strings: Tensor) -> Tensor:
        self.reward_rows += strings[..., 0].numel()
        return (oracle(strings) / self.tau).exp()


Choice = Callable[[Chain, Tensor, torch.Generator], Tensor]


def completed(chain: Chain, candidates: Tensor, generator: torch.Generator) -> Tensor:
    """D-DOIT's value of a state: the weight of a string that the model's own prediction completes it to."""
    return chain.weights(chain.complete(candidates, generator))


def resampled(count: int, value: Choice = completed) -> Choice:
    """D-DOIT (arXiv 2610.04938): of ``count`` candidates of the reverse kernel one is drawn by its value."""

    def choose(chain: Chain, strings: Tensor, generator: torch.Generator) -> Tensor:
        candidates = chain.step(strings.repeat_interleave(count, 0), generator)
        weights = value(chain, candidates, generator)
        chosen = torch.multinomial(weights.view(-1, count), 1, generator=generator)
        return candidates.view(-1, count, chain.length)[torch.arange(len(strings)), chosen[:, 0]]

    return choose


def best_of(several: int, chain: Chain, count: int, generator: torch.Generator) -> Tensor:
    """The best of several samples, ``count`` times."""
    strings = chain.sample(count * several, generator).view(count, several, -1)
    return strings[torch.arange(count), chain.weights(strings).argmax(1)]


def rows(trial: Trial, folder: Path) -> Iterator[dict[str, Any]]:
    """``kind`` ``masked``: a row for every sampler."""
    model, history = learn(trial, folder)
    chain = Chain.of(model, trial.length, trial.tau)
    everything, base, target, h = states(trial.length), chain.base_law(), chain.target_law(), chain.h()
    whole = (everything < MASK).all(1)
    data = torch.where(whole, law(everything), 0.0)
    common = {
        "kind": "masked",
        "model_error": (base - data).abs().sum().item() / 2,
        "base_distance": (base - target).abs().sum().item() / 2,
        "target_paid": (target * oracle(everything)).sum().item(),
        **costs(model, history),
    }

    def by_h(chain: Chain, candidates: Tensor, generator: torch.Generator) -> Tensor:
        return h[index(candidates)]

    samplers: dict[str, Callable[[torch.Generator], Tensor]] = {
        "base": lambda g: chain.sample(trial.strings, g),
        "exact h": lambda g: chain.sample(trial.strings, g, resampled(max(COUNTS), by_h)),
        "target": lambda g: everything[torch.multinomial(target, trial.strings, True, generator=g)],
    }
    for count in COUNTS:
        samplers[f"best of {count}"] = lambda g, m=count: best_of(m, chain, trial.strings, g)
        samplers[f"D-DOIT, M={count}"] = lambda g, m=count: chain.sample(trial.strings, g, resampled(m))
    for stream, (name, sampler) in enumerate(samplers.items()):
        generator = torch.Generator().manual_seed(training.batch_seed(trial.seed, stream, 3))
        chain.network_rows = chain.reward_rows = 0
        begun = time.perf_counter()
        strings = sampler(generator)
        counts = torch.bincount(index(strings), minlength=len(target))
        yield {
            **common,
            "sampler": name,
            "distance": total_variation(counts, target),
            "floor": _floor(target, trial.strings),
            "paid": oracle(strings).mean().item(),
            "network_calls": chain.network_rows / trial.strings,
            "reward_calls": chain.reward_rows / trial.strings,
            "sampling_seconds": time.perf_counter() - begun,
        }


def _floor(target: Tensor, count: int) -> float:
    """The total variation that so many draws of the law have from it, nearly: ``E|Z|`` of each share."""
    return (target * (1 - target) / count).sqrt().sum().item() * math.sqrt(2 / math.pi) / 2
