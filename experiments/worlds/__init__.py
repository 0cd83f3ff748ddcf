"""Text worlds for language agents (README.md), with one tokenizer and one grammar of prompts.

Importing this registers ``flashlla/Sokoban-v0`` and the others with gymnasium, which it needs.
"""

import gymnasium

from .augmentation import Augmentation
from .base import Advice, World, noisy_codes, rows
from .house import MiniHouse
from .lab import MiniLab
from .prompts import Answer, PromptStyle, read_answer, write_answer, write_prompt
from .shop import MiniShop
from .sokoban import Sokoban
from .tokenizer import Tokenizer, tokenizer
from .traces import Turn, expert_turns
from .vector import WorldVectorEnv

WORLDS = {world.name: world for world in (Sokoban, MiniHouse, MiniShop, MiniLab)}

for _name in WORLDS:
    if f"flashlla/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(
            id=f"flashlla/{_name}-v0",
            entry_point=f"{__name__}.single:{_name}Env",
            vector_entry_point=f"{__name__}.vector:{_name}VectorEnv",
        )

__all__ = [
    "WORLDS",
    "Advice",
    "Answer",
    "Augmentation",
    "MiniHouse",
    "MiniLab",
    "MiniShop",
    "PromptStyle",
    "Sokoban",
    "Tokenizer",
    "Turn",
    "World",
    "WorldVectorEnv",
    "expert_turns",
    "noisy_codes",
    "read_answer",
    "rows",
    "tokenizer",
    "write_answer",
    "write_prompt",
]
