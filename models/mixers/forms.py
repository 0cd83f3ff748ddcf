"""Which form a mixer takes: its own chunks or recurrence, or the kernels of flash-linear-attention."""

from __future__ import annotations

import functools
import importlib
import re

import torch

from flashlla._backends import Choice

FORMS = ("auto", "chunked", "recurrent", "fla")
OLDEST = (0, 4)
HALF = (torch.bfloat16, torch.float16)


def choose(form: str, device_type: str, dtype: torch.dtype, unsupported: str | None, decays: bool) -> Choice:
    """The form that a mixer takes, and why: ``"chunked"``, ``"recurrent"`` or ``"fla"``.

    Args:
        form: what the user asked for. ``"fla"`` is taken or refused, never replaced.
        device_type, dtype: where and in what the products are taken; dtype is that of autocast, if it is on.
        unsupported: why the kernels do not take the mixer's options, or None.
        decays: the mixer has one decay for all entries of a key.

    Raises:
        NotImplementedError: ``"fla"`` was asked for and cannot be taken.
    """
    if form in ("chunked", "recurrent"):
        return Choice(form, "named by the caller")
    why_not = unsupported or _rejection(device_type, dtype, decays)
    if form == "fla":
        if why_not:
            raise NotImplementedError(f"form='fla': {why_not}; use form='auto'")
        return Choice(form, "named by the caller")
    if why_not is None and torch.are_deterministic_algorithms_enabled():
        why_not = "flash-linear-attention times its kernels to choose among them, which is not deterministic"
    if why_not:
        return Choice("chunked", why_not)
    return Choice("fla", "flash-linear-attention takes these operands")


def choose_name(
    form: str, device_type: str, dtype: torch.dtype, unsupported: str | None, decays: bool
) -> str:
    """The name alone, as a constant to compilers, which cannot trace imports."""
    return choose(form, device_type, dtype, unsupported, decays).name


choose_name._dynamo_marked_constant = True  # as in flashlla._backends


def sizes_rejection(key: int, value: int, most: int = 256) -> str | None:
    """Why the kernels take no heads of these sizes, or None if they do."""
    if max(key, value) > most:
        return f"flash-linear-attention takes heads up to {most} entries, not {max(key, value)}"
    if key % 2 or value % 2:  # an odd number of halves is a known error of the compiled kernels
        return f"flash-linear-attention takes heads of even sizes, not {key} and {value}"
    return None


def _rejection(device_type: str, dtype: torch.dtype, decays: bool) -> str | None:
    if device_type != "cuda":
        return f"flash-linear-attention runs on cuda, not on {device_type}"
    if dtype not in HALF:
        name = str(dtype).removeprefix("torch.")
        return f"flash-linear-attention takes products in bfloat16 or float16, not {name}; use autocast"
    return _missing() or (_wrong_triton() if decays else None)


@functools.cache
def _missing() -> str | None:
    try:
        importlib.import_module("fla.ops")
        version = importlib.import_module("fla").__version__
    except Exception as error:  # a release and a Triton that do not go together raise any kind at import
        return f"flash-linear-attention does not load ({error!r}); pip install flash-linear-attention"
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        return f"flash-linear-attention {version} is older than {'.'.join(map(str, OLDEST))}; update it"
    return None


def _wrong_triton() -> str | None:
    """Gradients of decays are wrong there (issue 640 of flash-linear-attention), and newer releases raise."""
    version = importlib.import_module("triton").__version__
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if torch.cuda.get_device_capability()[0] == 9 and (3, 4) <= numbers < (3, 7, 1):
        return f"Triton {version} compiles kernels with decays wrongly for Hopper GPUs; update it to 3.7.1"
    return None
