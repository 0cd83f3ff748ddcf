"""Runs on several processes that must equal one: ``torchrun cases.py FOLDER NAMES...``."""

import math
import sys
from pathlib import Path

import torch
from problems import batch, configure, loss, make_model, make_trainer

from flashlla.models.training import NonFiniteError, ParallelConfig, World
from flashlla.models.training.optimizers import optimizer_tensors
from flashlla.models.training.shards import whole

LAYERS = {
    "lla": {"mixer": "lla", "mixer_options": {"gate": "learned"}},
    "window": {"mixer": "lla", "mixer_options": {"window_size": 5}},
    "parallax": {"mixer": "parallax"},
    "softmax": {"mixer": "softmax", "tie_embeddings": False},
}

# name: layer, parallel, changes of the configuration
CASES = {
    "ddp": ("lla", {}, {}),
    "ddp-accumulating": ("lla", {}, {"micro_batches": 4}),
    "ddp-bfloat16": ("lla", {}, {"precision": "bfloat16"}),
    "fsdp": ("lla", {"strategy": "fsdp"}, {}),
    "fsdp-accumulating": ("softmax", {"strategy": "fsdp"}, {"micro_batches": 4}),
    "fsdp-evaluating": ("lla", {"strategy": "fsdp"}, {"evaluate_every": 1}),
    "fsdp-muon": ("lla", {"strategy": "fsdp"}, {"optimizer": "muon"}),
    "tensor": ("lla", {"tensor": 2}, {}),
    "tensor-muon": ("lla", {"tensor": 2}, {"optimizer": "muon"}),
    "tensor-parallax": ("parallax", {"tensor": 2}, {}),
    "tensor-softmax": ("softmax", {"tensor": 2}, {}),
    "context": ("lla", {"context": 2}, {}),
    "context-bfloat16": ("lla", {"context": 2}, {"precision": "bfloat16"}),
    "context-window": ("window", {"context": 2}, {}),
    "context-parallax": ("parallax", {"context": 2}, {}),
    "context-softmax": ("softmax", {"context": 2}, {}),
    "context-fsdp": ("lla", {"context": 2, "strategy": "fsdp"}, {}),
}
ON_FOUR = {
    "data-context": ("lla", {"context": 2}, {}),
    "data-context-fsdp": ("lla", {"context": 2, "strategy": "fsdp"}, {}),
    "data-tensor-fsdp": ("lla", {"tensor": 2, "strategy": "fsdp"}, {}),
    "context-tensor-fsdp": ("lla", {"tensor": 2, "context": 2, "strategy": "fsdp"}, {}),
    "context-4": ("lla", {"context": 4}, {}),
    "ddp-4": ("lla", {}, {"micro_batches": 4}),
}
RESUMED = ("ddp", "fsdp", "fsdp-muon", "tensor")

FLOAT32 = ("ddp", "fsdp", "fsdp-muon", "tensor", "tensor-muon", "context", "data-context")


def dtypes_of(name):
    if "bfloat16" in name:  # autocast leaves float64 as it is
        return (torch.float32,)
    return (torch.float64,) + (torch.float32,) * (name in FLOAT32)


def evaluate(model):
    return {"validation_loss": loss(model, batch(99, 0))}


def train(name, folder, dtype, world=None, steps=4):
    """Train into ``folder`` and leave the gathered weights there."""
    layer, _, changes = {**CASES, **ON_FOUR}[name]
    model = make_model(**LAYERS[layer], dtype=dtype)
    config = configure(4, checkpoint_every=2, **changes)
    trainer = make_trainer(folder, model, config, evaluate=evaluate, world=world)
    trainer.fit(should_stop=lambda: trainer.step >= steps)
    state = optimizer_tensors(trainer._model, trainer.optimizers)  # AdamW's exp_avg is a mean of gradients
    weights = {f"average.{name}": t for name, t in trainer.weights(averaged=True).items()}
    weights |= {name: whole(t) for name, t in state.items()} | trainer.weights()
    if world is None or world.is_main:
        torch.save(weights, folder / f"weights-{steps}.pt")
    return weights


def fail(folder, world):
    """A loss that is NaN in the micro-batch of one process stops all, with the same words."""

    def broken(model, tensors):
        is_bad = trainer.step == 1 and torch.equal(tensors[0], batch(1, 1)[0])
        return loss(model, tensors) * (math.nan if is_bad else 1.0)

    config = configure(4, micro_batches=world.size)
    trainer = make_trainer(folder / "failed", config=config, loss=broken, world=world)
    try:
        trainer.fit()
    except NonFiniteError as error:
        (folder / f"error-{world.rank}.txt").write_text(str(error))


def main(folder, *names):
    torch.set_num_threads(1)
    for name in names:
        parallel = ParallelConfig(**{**CASES, **ON_FOUR}[name][1])
        world = World.join(parallel, "cpu")
        for dtype in dtypes_of(name):
            train(name, folder / name / str(dtype), dtype, world)
        if name in RESUMED:
            train(name, folder / name / "from-one", torch.float64, world)  # goes on with a run on one process
            train(name, folder / name / "to-one", torch.float64, world, steps=2)
            train(name, folder / name / "stopped", torch.float64, world, steps=2)
            train(name, folder / name / "stopped", torch.float64, world)
    fail(folder, World.join(device="cpu"))
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
