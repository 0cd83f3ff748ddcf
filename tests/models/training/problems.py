"""One tiny training problem that the tests of this folder share, with processes of their own or without."""

import warnings

import torch
from torch.nn import functional as F

from flashlla import models
from flashlla.models import training

SEQ = 16


def make_model(mixer="lla", *, dtype=torch.float32, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mixer": mixer}
    model = models.LanguageModel(models.LanguageModelConfig(**{**sizes, **changes}), dtype=dtype)
    for name, p in model.named_parameters():
        if name.endswith("r_scale"):
            torch.nn.init.normal_(p)  # Parallax away from its start, which is softmax attention
    return model


def batch(step, rank):
    """Two random walks over the tokens."""
    generator = training.batch_generator(7, step, rank)
    moves = torch.randint(0, 3, (2, SEQ + 1), generator=generator)
    tokens = moves.cumsum(1) % 32
    return tokens[:, :-1], tokens[:, 1:]


def loss(model, batch):
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def configure(steps=6, optimizer="adamw", **options):
    options = {"micro_batches": 2, "ema_decay": 0.9, "log_every": 2, **options}
    return training.TrainerConfig(steps, optimizer=training.OptimizerConfig(optimizer, 1e-2), **options)


def make_trainer(folder, model=None, config=None, *, batch=batch, loss=loss, **options):
    model = make_model() if model is None else model
    config = configure() if config is None else config
    return training.Trainer(model, loss, batch, config, folder, progress=False, **options)


def train(folder, options):
    """A whole run, or the rest of one, in a process of its own."""
    torch.set_num_threads(1)
    make_trainer(folder, config=configure(**options)).fit()


def resume(folder):
    """Only load what a run has left behind, and take no warning for less than an error."""
    warnings.simplefilter("error")
    make_trainer(folder, config=configure(1)).resume()


def losses(folder):
    records = training.read_metrics(folder / "metrics.jsonl")
    return [record["loss"] for record in records if "loss" in record]
