"""Small worlds with exact laws: balls in a box, a slope, a pendulum; all of a batch at once.

Lengths are in half-widths of the box, times in frames. x goes to the right, y upwards, z away from the
camera, which is at the origin. A clip has up to two balls, and they all have one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("bounce", "collision", "incline", "pendulum", "occlusion")
MEETING = ("collision", "occlusion")  # kinds with two balls
BALLS = 2
RADIUS = 0.3
GRAVITY = 0.08  # per frame squared
LOW = (-1.0, -1.0, 1.7)  # the walls
HIGH = (1.0, 1.0, 3.3)
WALL = HIGH[2]  # depth of what is behind everything
ROLLING = 5 / 7  # share of the acceleration of a solid ball that rolls without slipping
SUBSTEPS = 16  # of a frame
JITTER = 0.03  # of a second take


class Scene(NamedTuple):
    """All that decides a batch of clips, ``[clips, ...]`` each.

    Attributes:
        kind: index into KINDS.
        position, velocity: of the balls, ``[clips, balls, 3]``; those on a guide follow from ``along``.
        present: bool ``[clips, balls]``.
        gravity: ``[clips]``, downwards.
        restitution: ``[clips]``, the share of the speed that a bounce leaves.
        anchor: ``[clips, 3]``, the pivot of a pendulum, or the upper end of a slope under the ball's centre.
        slant: ``[clips]``, of a slope, below the horizontal to the right, radians; negative to the left.
        length: ``[clips]``, of the pendulum, or of the way along the slope.
        along: ``[clips, 2]``, where the ball on a guide is, and how fast: an angle, or a way.
        kick: ``[clips, 3]``, velocity that both balls suddenly have more of; 0 in worlds that obey laws.
        kick_frame: ``[clips]``, when.
    """

    kind: Tensor
    position: Tensor
    velocity: Tensor
    present: Tensor
    gravity: Tensor
    restitution: Tensor
    anchor: Tensor
    slant: Tensor
    length: Tensor
    along: Tensor
    kick: Tensor
    kick_frame: Tensor

    @property
    def guided(self) -> Tensor:
        """Clips whose ball is on a slope or a rod, bool ``[clips]``."""
        return self.is_a("incline") | self.is_a("pendulum")

    def is_a(self, kind: str) -> Tensor:
        return self.kind == KINDS.index(kind)

    def rows(self, index: Tensor | slice) -> Scene:
        """Some of the clips."""
        return Scene(*(t[index] for t in self))


class Motion(NamedTuple):
    """What happened.

    Attributes:
        position: of the balls, ``[clips, frames, balls, 3]``.
        present: bool ``[clips, balls]``.
        free: bool ``[clips, frames, balls]``: nothing but gravity acted since the frame before.
        guide: both ends of the slope or rod, ``[clips, frames, 2, 3]``.
        guided: bool ``[clips]``.
        gravity: ``[clips]``.
    """

    position: Tensor
    present: Tensor
    free: Tensor
    guide: Tensor
    guided: Tensor
    gravity: Tensor


def draw_scenes(count: int, generator: torch.Generator) -> Scene:
    """Scenes of all kinds, float32 on the CPU, that follow from the state of the generator."""
    uniform = _uniform(count, generator)
    kind = torch.randint(len(KINDS), (count,), generator=generator)
    side = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    position, velocity = _draw_balls(kind, side, uniform)
    anchor, slant, length, along = _draw_guides(kind, side, uniform)
    return Scene(
        kind=kind,
        position=position.clamp(*inner_walls()),
        velocity=velocity,
        present=torch.cat([torch.ones(count, 1, dtype=torch.bool), _one_of(kind, *MEETING)], 1),
        gravity=torch.full((count,), GRAVITY),
        restitution=uniform(0.7, 0.9),
        anchor=anchor,
        slant=slant,
        length=length,
        along=along,
        kick=torch.zeros(count, 3),
        kick_frame=torch.zeros(count),
    )


def broken(scene: Scene, frames: int, generator: torch.Generator) -> Scene:
    """The same beginnings under other laws: any gravity, also upwards, any restitution, a sudden kick.

    Appearance stays as it is; what is learned of motion is wrong.
    """

    uniform = _uniform(len(scene.kind), generator)
    return scene._replace(
        gravity=GRAVITY * uniform(-1.5, 1.5),
        restitution=uniform(0.0, 1.3),
        kick=uniform(-0.2, 0.2, 3) * torch.tensor([1.0, 1.0, 0.25]),
        kick_frame=uniform(1.0, frames - 1.0),
    )


def second_take(scene: Scene, generator: torch.Generator) -> Scene:
    """The same scene once more: speeds, gravity and restitution are off by some hundredths (Physics-IQ films
    everything twice).
    """

    def near(x: Tensor, scale: float | Tensor) -> Tensor:
        return x + JITTER * scale * torch.randn(x.shape, generator=generator)

    speed = scene.velocity.norm(dim=-1, keepdim=True)
    along = torch.stack([scene.along[:, 0], near(scene.along[:, 1], 0.1)], -1)
    return scene._replace(
        velocity=near(scene.velocity, speed),
        gravity=near(scene.gravity, GRAVITY),
        restitution=near(scene.restitution, 1.0),
        along=along,
    )


def simulate(scene: Scene, frames: int) -> Motion:
    """Positions at every frame; the first frame is the scene as it is.

    Free flight is exact at any step: the scheme is that of constant acceleration.
    """
    position, velocity, along = scene.position.clone(), scene.velocity.clone(), scene.along
    forced = _acceleration(scene)
    positions, ways, free = [position], [along[:, 0]], [~scene.guided[:, None].expand_as(scene.present)]
    for frame in range(1, frames):
        kicked = (scene.kick_frame > frame - 1) & (scene.kick_frame <= frame) & (scene.kick != 0).any(-1)
        velocity = velocity + kicked[:, None, None] * scene.kick[:, None]
        along = along + kicked[:, None] * torch.stack([torch.zeros_like(scene.slant), scene.kick[:, 0]], -1)
        touched = kicked[:, None].expand_as(scene.present)
        for _ in range(SUBSTEPS):
            position, velocity, hit = _fly(scene, position, velocity, 1 / SUBSTEPS)
            along = _slide(scene, forced, along, 1 / SUBSTEPS)
            touched = touched | hit
        positions.append(position)
        ways.append(along[:, 0])
        free.append(~touched & ~scene.guided[:, None])
    on_guide, guide = _on_guide(scene, torch.stack(ways, 1))
    path = torch.stack(positions, 1)
    path[:, :, 0] = torch.where(scene.guided[:, None, None], on_guide, path[:, :, 0])
    return Motion(path, scene.present, torch.stack(free, 1), guide, scene.guided, scene.gravity)


def inner_walls() -> tuple[Tensor, Tensor]:
    """The lowest and the highest place of a ball's centre, ``[3]`` each."""
    return torch.tensor(LOW) + RADIUS, torch.tensor(HIGH) - RADIUS


# ---- beginnings -------------------------------------------------------------------------------------


def _uniform(count: int, generator: torch.Generator) -> Callable[..., Tensor]:
    """``uniform(low, high, *size)`` draws ``[count, *size]``."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *size, generator=generator)

    return uniform


def _draw_balls(kind: Tensor, side: Tensor, uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Positions and velocities ``[clips, balls, 3]``: anywhere, or two balls on their way to each other, in
    one plane to collide, or in two to pass.
    """
    meeting, collision, occlusion = (_one_of(kind, *k) for k in (MEETING, ("collision",), ("occlusion",)))
    apart = side[:, None] * torch.tensor([-1.0, 1.0])
    x = torch.where(meeting, apart * uniform(0.5, 0.65, 1), uniform(-0.6, 0.6, 2))
    y, z = uniform(-0.2, 0.65, 2), uniform(2.05, 2.95, 2)
    y = torch.where(meeting, y[:, :1] + uniform(-0.1, 0.1, 2), y)
    z = torch.where(collision, z[:, :1] + uniform(-0.1, 0.1, 2), z)
    z = torch.where(occlusion, torch.stack([uniform(2.05, 2.15), uniform(2.85, 2.95)], -1), z)
    speed = torch.where(meeting, -apart * uniform(0.1, 0.2, 2), uniform(-0.15, 0.15, 2))
    climb, away = uniform(-0.05, 0.2, 2), uniform(-0.05, 0.05, 2)
    climb = torch.where(meeting, climb[:, :1], climb)
    away = torch.where(meeting, 0.2 * away, away)
    return torch.stack([x, y, z], -1), torch.stack([speed, climb, away], -1)


def _draw_guides(kind: Tensor, side: Tensor, uniform: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    """Anchor, slant, length and ``along`` of a scene, of pendulums and, for all other kinds, of slopes."""
    pendulum = kind == KINDS.index("pendulum")
    pivot = (uniform(-0.1, 0.1), uniform(-0.1, 0.1))
    top = (-0.55 * side, uniform(0.2, 0.5))
    x, y = (torch.where(pendulum, *pair) for pair in zip(pivot, top, strict=True))
    anchor = torch.stack([x, y, uniform(2.1, 2.9)], -1)
    length = torch.where(pendulum, uniform(0.5, 0.6), uniform(1.0, 1.1))
    start = torch.where(pendulum, side * uniform(0.4, 1.4), uniform(0.0, 0.25))
    speed = torch.where(pendulum, uniform(-0.1, 0.1), uniform(0.0, 0.08))
    return anchor, side * uniform(0.3, 0.7), length, torch.stack([start, speed], -1)


# ---- laws -------------------------------------------------------------------------------------------


def _fly(scene: Scene, position: Tensor, velocity: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gravity, walls, and the two balls off each other; also who was touched, ``[clips, balls]``."""
    fall = -scene.gravity[:, None] * h
    position = position + velocity * h
    position[..., 1] += fall * h / 2
    velocity = velocity.clone()
    velocity[..., 1] += fall
    position, velocity, struck = _collide(scene, position, velocity)
    low, high = inner_walls()
    outside = (position < low) | (position > high)
    leaving = outside & ((position < low) == (velocity < 0))
    velocity = torch.where(leaving, -scene.restitution[:, None, None] * velocity, velocity)
    position = position.clamp(low, high)
    return position, velocity, outside.any(-1) | struck


def _collide(scene: Scene, position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two equal balls exchange what they have along the line of their centres, less what is lost."""
    between = position[:, 1] - position[:, 0]
    distance = between.norm(dim=-1, keepdim=True)
    normal = between / distance.clamp(min=1e-6)
    touching = (distance[:, 0] < 2 * RADIUS) & scene.present.all(1)
    closing = ((velocity[:, 0] - velocity[:, 1]) * normal).sum(-1).clamp(min=0.0)
    impulse = (1 + scene.restitution) / 2 * closing * touching
    overlap = (2 * RADIUS - distance) * touching[:, None] / 2
    signs = torch.tensor([-1.0, 1.0])[:, None]
    velocity = velocity + signs * (impulse[:, None] * normal)[:, None]
    position = position + signs * (overlap * normal)[:, None]
    return position, velocity, touching[:, None].expand_as(scene.present)


def _acceleration(scene: Scene) -> Callable[[Tensor], Tensor]:
    """Of the one coordinate of a ball on a guide."""
    slope = ROLLING * scene.gravity * scene.slant.abs().sin()

    def of(way: Tensor) -> Tensor:
        return torch.where(scene.is_a("pendulum"), -scene.gravity / scene.length * way.sin(), slope)

    return of


def _slide(scene: Scene, acceleration: Callable[[Tensor], Tensor], along: Tensor, h: float) -> Tensor:
    """A step of the leapfrog scheme; a slope has stops at both ends."""
    way, speed = along.unbind(-1)
    speed = speed + acceleration(way) * h / 2
    way = way + speed * h
    speed = speed + acceleration(way) * h / 2
    beyond = scene.is_a("incline") & (((way > scene.length) & (speed > 0)) | ((way < 0) & (speed < 0)))
    speed = torch.where(beyond, -scene.restitution * speed, speed)
    stopped = torch.minimum(way.clamp(min=0.0), scene.length)
    return torch.stack([torch.where(scene.is_a("incline"), stopped, way), speed], -1)


def _on_guide(scene: Scene, ways: Tensor) -> tuple[Tensor, Tensor]:
    """Centres ``[clips, frames, 3]`` of balls on guides, and the ends of these ``[clips, frames, 2, 3]``."""
    anchor = scene.anchor[:, None]
    swing = torch.stack([ways.sin(), -ways.cos(), 0 * ways], -1) * scene.length[:, None, None]
    side, steep, none = scene.slant.sign(), scene.slant.abs(), torch.zeros_like(scene.slant)
    down = torch.stack([side * steep.cos(), -steep.sin(), none], -1)[:, None]
    up = RADIUS * torch.stack([side * steep.sin(), steep.cos(), none], -1)[:, None]
    pendulum = scene.is_a("pendulum")[:, None, None]
    centre = anchor + torch.where(pendulum, swing, ways[..., None] * down)
    upper, lower = (anchor - up + way * down for way in (-RADIUS, scene.length[:, None, None] + RADIUS))
    first = torch.where(pendulum, anchor, upper).expand_as(centre)
    second = torch.where(pendulum, centre, lower.expand_as(centre))
    return centre, torch.stack([first, second], 2)


def _one_of(kind: Tensor, *names: str) -> Tensor:
    """bool ``[clips, 1]``."""
    return torch.isin(kind, torch.tensor([KINDS.index(name) for name in names]))[:, None]
