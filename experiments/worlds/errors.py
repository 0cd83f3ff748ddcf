"""Checks of arguments, one line each."""

from __future__ import annotations

from collections.abc import Collection


def check_range(name: str, value: float, least: float, most: float) -> None:
    """Raises:
    ValueError: ``value`` is not between the two, both included.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value!r} must be {least} to {most}")


def check_pair(name: str, pair: tuple[int, int], least: int, most: int) -> None:
    """Raises:
    ValueError: the pair is not a least and a most value within the limits.
    """
    if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
        raise ValueError(f"{name}={pair!r} must be two numbers, least and most, within {least} to {most}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises:
    ValueError: ``value`` is none of the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, choices))}")
