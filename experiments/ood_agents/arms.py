"""The arms of a trial: where a policy begins, where it is trained, and what is different about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..worlds import Augmentation
from .domains import DOMAINS

if TYPE_CHECKING:
    from .run import Trial

INITS = ("V1", "V2")
PROBABILITY = {"V1": 1.0, "V2": 0.5}  # of the paper: how many episodes are augmented
LONGER, HIGHER = 2, 10  # times as many draws, times the KL
DOSES = (0.5, 2.0, 4.0)  # of the volume; 0 is the plain arm, and 1 the augmented one
DOSED = "sokoban"  # where the dose is varied
LINES = (0, 8)  # distractors of the factorial
SUBTASKS = (1, 3)
LINE_VOLUME = 12  # of one line in MiniHouse


@dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
        init: the initial policy.
        trained: the world.
        variant: what is different, one word.
        dose: the volume of distractors over that of the augmented arm; None where this is not the question.
        augmentation: of the world that is trained in.
        lines, subtasks: of the factorial.
        longer, higher: times as many draws, times the weight of the KL.
    """

    init: str
    trained: str
    variant: str
    dose: float | None = None
    augmentation: Augmentation | None = None
    lines: int | None = None
    subtasks: int | None = None
    longer: int = 1
    higher: int = 1

    @property
    def name(self) -> str:
        """Of its folder, and of its random numbers."""
        return f"{self.init} {self.trained} {self.variant}"


def plain(trial: Trial) -> Iterator[Arm]:
    """Both initial policies in every world."""
    for init in INITS:
        for trained in trial.worlds:
            yield Arm(init, trained, "plain", dose=0.0)


def augmented(trial: Trial) -> Iterator[Arm]:
    """With distractors in the observations."""
    for init in INITS:
        for trained in trial.augmented:
            yield Arm(init, trained, "augmented", 1.0, _augmentation(trial, init, trained))


def controls(trial: Trial) -> Iterator[Arm]:
    """As many words that help, as many without sense, a longer training, and a tighter one."""
    for trained in trial.augmented:
        for kind in ("paraphrase", "noise"):
            yield Arm("V1", trained, kind, augmentation=_augmentation(trial, "V1", trained, kind=kind))
        yield Arm("V1", trained, "longer", longer=LONGER)
        yield Arm("V1", trained, "higher_kl", higher=HIGHER)


def doses(trial: Trial) -> Iterator[Arm]:
    """Other volumes of distractors in one world."""
    for dose in DOSES:
        yield Arm("V1", DOSED, f"dose_{dose:g}", dose, _augmentation(trial, "V1", DOSED, dose))


def factorial(trial: Trial) -> Iterator[Arm]:
    """Distractors and subtasks in MiniHouse, two by two."""
    for lines in LINES:
        for subtasks in SUBTASKS:
            added = Augmentation(LINE_VOLUME * lines) if lines else None
            variant = f"lines_{lines}_subtasks_{subtasks}"
            yield Arm("V1", "house", variant, augmentation=added, lines=lines, subtasks=subtasks)


DESIGNS = {
    "plain": plain,
    "augmented": augmented,
    "controls": controls,
    "doses": doses,
    "factorial": factorial,
}


def arms(trial: Trial) -> list[Arm]:
    """Those of all designs of a trial, from the initial policies that it has."""
    found = (arm for design in trial.designs for arm in DESIGNS[design](trial))
    return [arm for arm in found if arm.init in trial.inits]


def needed_inits(chosen: Sequence[Arm]) -> tuple[str, ...]:
    """The initial policies of some arms; V2 builds on V1."""
    return INITS[: 1 + max(INITS.index(arm.init) for arm in chosen)]


def _augmentation(
    trial: Trial, init: str, trained: str, dose: float = 1.0, kind: str = "distractors"
) -> Augmentation:
    volume = round(dose * trial.volumes[DOMAINS.index(trained)])
    return Augmentation(volume, PROBABILITY[init], kind)
