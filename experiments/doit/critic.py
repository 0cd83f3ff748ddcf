"""Tier 2: values of chunks of actions, learned from a data set alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .episodes import DISCOUNT, Chunks
from .guidance import standardised

POLYAK = 0.005
BACKUP_TAU = 0.5  # of the softmax over actions that the behaviour would take next
RETURNS = 10.0  # that the returns of a data set span behind scaling
RATE = 1e-3


class Critic(nn.Module):
    """Twin Q of a state and a chunk of actions; its value is the smaller one."""

    def __init__(self, states: int, actions: int, width: int):
        super().__init__()
        self.twins = nn.ModuleList(
            nn.Sequential(
                nn.Linear(states + actions, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )
            for _ in range(2)
        )

    def both(self, states: Tensor, actions: Tensor) -> Tensor:
        """``[2, ...]`` for states ``[..., states]`` and chunks ``[..., length, actions]``."""
        x = torch.cat([states, actions.flatten(-2)], -1)
        return torch.stack([twin(x)[..., 0] for twin in self.twins])

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        return self.both(states, actions).amin(0)


def learn(chunks: Chunks, next_actions: Tensor, *, width: int, steps: int, batch: int, seed: int) -> Critic:
    """Fit ``Q(s, chunk) = rewards + discount^length V(s')`` with the in-support softmax of QGPO (arXiv
    2304.12824): ``V = sum_j softmax_j(Q / tau) Q`` over actions that the behaviour takes in s'.

    Args:
        chunks: rows, with rewards in the scale that Q shall have.
        next_actions: of the behaviour in their next states, ``[rows, samples, length, actions]``.
    """
    torch.manual_seed(seed)
    length, actions = chunks.actions.shape[1:]
    critic = Critic(chunks.states.shape[1], length * actions, width).to(chunks.states.device)
    target, generator = copy.deepcopy(critic), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(critic.parameters(), RATE)
    for _ in range(steps):
        rows = torch.randint(len(chunks.rewards), (batch,), generator=generator)
        states, taken, rewards, next_states, going = (column[rows] for column in chunks)
        with torch.no_grad():
            several = next_states[:, None].expand(-1, next_actions.shape[1], -1)
            q = target(several, next_actions[rows])
            value = (standardised(q, BACKUP_TAU).softmax(1) * q).sum(1)
            wanted = rewards + DISCOUNT**length * going * value
        loss = (critic.both(states, taken) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, POLYAK)
    return critic.eval().requires_grad_(False)


def quantised(values: Tensor, delta: float) -> Tensor:
    """Values in steps of ``delta``: their gradient is zero wherever there is one."""
    return torch.floor(values / delta) * delta
