"""The success rates that the paper prints, in per cent, and what its formulas make of them.

arXiv 2601.18217, version 1, January 2026. ``house`` is ALFWorld, ``shop`` WebShop, ``lab`` ScienceWorld.
Tables are by initial policy, then by training domain, then by test domain, those of one domain left out.
"""

from __future__ import annotations

from .formulas import relative_change

BEFORE = {
    "V1": {"house": 25.8, "shop": 34.4, "sokoban": 12.5, "lab": 3.1},
    "V2": {"house": 21.9, "shop": 38.3, "sokoban": 14.1, "lab": 18.0},
}
PLAIN = {
    "V1": {
        "house": {"shop": 15.2, "sokoban": 14.0},
        "shop": {"house": 10.8, "sokoban": 12.8},
        "sokoban": {"house": 20.5, "shop": 15.0},
    },
    "V2": {
        "house": {"shop": 30.5, "sokoban": 9.8, "lab": 10.0},
        "shop": {"house": 17.0, "sokoban": 9.0, "lab": 13.8},
        "sokoban": {"house": 20.0, "shop": 34.0, "lab": 13.0},
        "lab": {"house": 19.8, "shop": 35.8, "sokoban": 12.0},
    },
}
AUGMENTED = {
    "V1": {
        "house": {"shop": 23.8, "sokoban": 11.2},
        "shop": {"house": 17.8, "sokoban": 11.0},
        "sokoban": {"house": 21.2, "shop": 24.8},
    },
    "V2": {
        "house": {"shop": 30.3, "sokoban": 11.0, "lab": 12.5},
        "shop": {"house": 25.8, "sokoban": 11.8, "lab": 15.5},
        "sokoban": {"house": 20.8, "shop": 37.0, "lab": 13.0},
    },
}
WITHOUT_THINKING = {  # where all test domains are known
    "V1": {
        "house": {"shop": 0.8, "sokoban": 7.5},
        "shop": {"house": 8.2, "sokoban": 17.8},
        "sokoban": {"house": 16.0, "shop": 17.2},
    },
    "V2": {
        "shop": {"house": 4.5, "sokoban": 12.5, "lab": 11.0},
        "sokoban": {"house": 9.2, "shop": 25.8, "lab": 7.8},
        "lab": {"house": 6.2, "shop": 32.5, "sokoban": 14.0},
    },
}
# What is printed: sums of ranks, of V2 and of both; Delta_OOD of augmentation; relative changes from the
# initial policy; and the changes without thinking, which are printed in this order.
SCORES = {"lab": 3, "sokoban": 5, "shop": 6, "house": 8}
SCORES_OF_BOTH = {"sokoban": 7, "shop": 10, "house": 10}
CHANGES = {
    "V1": {"house": 32.6, "shop": 35.5, "sokoban": 42.5},
    "V2": {"house": 7.0, "shop": 33.4, "sokoban": 5.7},
}
TRADE_OFF = {  # (trained, tested): V1, V2
    ("sokoban", "shop"): (-56.4, -11.2),
    ("shop", "house"): (-58.1, -22.4),
    ("house", "sokoban"): (12.0, -30.5),
    ("shop", "sokoban"): (2.4, -36.2),
}
CHANGES_WITHOUT_THINKING = (-119.0, -234.0, -82.0, -216.0, -217.0)


def recomputed(tables: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Delta_OOD in per cent against PLAIN, by initial policy and training domain, to one decimal place."""
    return {
        init: {
            trained: round(100 * relative_change(list(PLAIN[init][trained].values()), list(row.values())), 1)
            for trained, row in rows.items()
        }
        for init, rows in tables.items()
    }
