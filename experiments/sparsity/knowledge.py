"""The part on the knowledge graph: train on its facts, and measure while training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashlla.models import LanguageModel, LanguageModelConfig, probes

from ..common.costs import costs
from ..common.training import train
from .graph import ID, SPLITS, Graph, build_graph
from .measures import MAIN, compare, describe, describe_main, rounded
from .text import CHOICES, PAD, VOCABULARY, choices, encode, length_of

if TYPE_CHECKING:
    from .run import Trial

# That of the paper: a long warm-up, a cosine to zero, no weight decay.
RECIPE = {"warmup": 0.2, "floor": 0.0, "weight_decay": 0.0}
TOGETHER = 512  # sequences
# Where states are taken: behind the prompt, with the final norm and without; and one token on, behind the
# letter that every answer begins with, where the first digit is decided.
PLACES = ("prompt", "before the norm", "first digit")


def model_config(mixer: str, depth: int, heads: int, width: int) -> LanguageModelConfig:
    """Llama-like, with a SwiGLU of twice the width as in the paper.

    Raises:
        ValueError: sizes that do not fit.
    """
    return LanguageModelConfig(
        vocab_size=VOCABULARY,
        dim=width,
        depth=depth,
        heads=heads,
        mixer=mixer,
        mlp_hidden=2 * width,
        tie_embeddings=False,
    )


@dataclass(frozen=True)
class Questions:
    """Those of one split.

    Attributes:
        tokens: int64 ``[questions * choices, seq]``, the right choice of each question first.
        prompts: int64 ``[questions * choices]``, tokens of the prompts.
        deduced: bool ``[questions]``, whether the fact is no atomic one.
    """

    tokens: Tensor
    prompts: Tensor
    deduced: Tensor

    @classmethod
    def of(cls, graph: Graph, split: str, length: int, seed: int, device: str) -> Questions:
        asked = choices(graph, graph.questions[split], seed)
        tokens, prompts = encode([fact for options in asked for fact in options], length)
        atomic = frozenset(graph.atomic)
        deduced = torch.tensor([fact not in atomic for fact in graph.questions[split]])
        return cls(*(t.to(device) for t in (tokens, prompts, deduced)))

    def answers(self, model: LanguageModel) -> tuple[float, float]:
        """Share of questions whose right choice has the least loss a token, and its mean loss in nats."""
        parts = zip(self.tokens.split(TOGETHER), self.prompts.split(TOGETHER), strict=True)
        losses = torch.cat([_answer_loss(model, *part) for part in parts]).view(-1, CHOICES)
        right = losses[:, 0] < losses[:, 1:].min(1).values
        return right.double().mean().item(), losses[:, 0].mean().item()

    def states(self, model: LanguageModel) -> dict[str, tuple[Tensor, Tensor]]:
        """By place: hidden states ``[questions, dim]``, and their lengths before the final norm."""
        tokens, ends = self.tokens[::CHOICES], self.prompts[::CHOICES] - 1
        raw, normed = probes.hidden_states(model, tokens, layers=(-1, "norm"), position=None)
        rows = torch.arange(len(tokens), device=tokens.device)
        taken = zip(PLACES, ((normed, ends), (raw, ends), (normed, ends + 1)), strict=True)
        return {
            place: (states[rows, places], raw[rows, places].float().norm(dim=-1))
            for place, (states, places) in taken
        }


def run(trial: Trial, folder: Path) -> list[dict[str, Any]]:
    """A row for every evaluation, split and place: how right the model is, and how sparse its states are."""
    torch.manual_seed(trial.seed)
    graph = build_graph(
        entities=trial.entities,
        relations=trial.relations,
        rules=trial.rules,
        attachments=trial.attachments,
        facts=trial.facts,
        questions=trial.test,
        seed=trial.seed,
    )
    length = length_of(graph)
    exam = {split: Questions.of(graph, split, length, trial.seed, trial.device) for split in SPLITS}
    model = LanguageModel(model_config(trial.mixer, trial.depth, trial.heads, trial.width))
    model = model.to(trial.device, getattr(torch, trial.precision))
    facts = encode(graph.training, length)[0]

    def batch(generator: torch.Generator) -> Tensor:
        return facts[torch.randint(len(facts), (trial.batch,), generator=generator)]

    with torch.no_grad():
        start = {"step": 0, **_examine(model.eval(), exam)}
    history = train(
        model,
        _loss,
        batch,
        folder,
        steps=trial.steps,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        optimizer=trial.optimizer,
        **RECIPE,
        evaluate=lambda model, step: _examine(model, exam),
        evaluate_every=trial.every,
    )
    about = costs(model, history)
    return [row | about for record in (start, *history.evaluations) for row in _rows(record)]


def _loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1]).flatten(0, 1).float()
    return F.cross_entropy(logits, tokens[:, 1:].flatten(), ignore_index=PAD)


def _answer_loss(model: LanguageModel, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Mean loss over the tokens behind the prompt, its end among them, ``[batch]``."""
    targets = tokens[:, 1:]
    logits = model(tokens[:, :-1]).float()
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    places = torch.arange(1, tokens.shape[1], device=tokens.device)
    counted = (places >= prompts[:, None]) & (targets != PAD)
    return (losses * counted).sum(1) / counted.sum(1)


def _examine(model: LanguageModel, exam: dict[str, Questions]) -> dict[str, float]:
    """Numbers by ``split/place/name``: all there is behind prompts, the main metric at other places."""
    found, states = {}, {split: questions.states(model) for split, questions in exam.items()}
    for split, questions in exam.items():
        accuracy, loss = questions.answers(model)
        for place, (h, lengths) in states[split].items():
            if place == PLACES[0]:
                deduced = describe_main(h[questions.deduced])[MAIN]
                numbers = {"accuracy": accuracy, "loss": loss, "deduced": deduced, **describe(h)}
            else:
                numbers = describe_main(h)
            if split != ID:
                known, known_lengths = states[ID][place]
                numbers |= compare(known, h, (known_lengths, lengths))
            found |= {f"{split}/{place}/{name}": value for name, value in numbers.items()}
    return found


def _rows(record: dict[str, float]) -> list[dict[str, Any]]:
    """The inverse of :func:`_examine`: a row for every split and place."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in record.items():
        if key != "step":
            split, place, name = key.split("/")
            rows.setdefault((split, place), {"split": split, "place": place})[name] = value
    step = int(record["step"])
    return [rounded({"kind": "state", "step": step, **row}) for row in rows.values()]
