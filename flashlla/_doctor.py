"""What ``flashlla doctor`` finds out: plain data first, text after."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

import torch

from flashlla import __version__, _backends, _env, _validation, lla_attention

PACKAGES = ("torch", "triton", "cupy", "einops", "numpy", "transformers")
VARIABLES = {
    "FLASHLLA_BACKEND": _env.backend,
    "FLASHLLA_ISA": _env.instruction_set,
    "FLASHLLA_NUM_THREADS": _env.num_threads,
    "FLASHLLA_TUNING": _env.tuning,
}
# A trial call whose error against the reference is above this is no rounding.
TRIAL_SHAPE, TRIAL_TOLERANCE = (1, 96, 2, 32), 1e-3


def examine(shape: tuple[int, ...], dtype: str, device: str | None) -> dict[str, Any]:
    """The report; ``problems`` lists what is wrong, in words.

    Raises:
        ValueError: a shape, dtype or device that flashlla does not know.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, operands = _check_call(shape, dtype, device)
    problems: list[str] = []
    report = {
        "versions": _versions(),
        "extension": _extension(problems),
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "environment": _environment(problems),
        "call": {"shape": list(shape), "dtype": dtype, "device": device, **_choice(kind, operands, problems)},
        "trials": _trials(device, problems),
    }
    return {**report, "problems": problems}


def _check_call(shape: tuple[int, ...], dtype: str, device: str) -> tuple[str, torch.dtype]:
    """Type of the device and the dtype of a call that the public functions would accept."""
    names = {str(d).removeprefix("torch."): d for d in _backends.FLOATING}
    if dtype not in names:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(names)}")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown to torch") from error
    q = torch.empty(shape, dtype=names[dtype], device="meta")
    _validation.check_operands(q, q, q, None, packed=False)
    return kind, names[dtype]


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"flashlla": __version__, "python": platform.python_version()}
    # CuPy's distribution is named after the CUDA version, so the module's owner is looked up. Python 3.10
    # does not know all owners: the others have their module's name.
    owners = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(owners.get(name, [name])[0])
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _extension(problems: list[str]) -> dict[str, Any]:
    if missing := _backends.BACKENDS["cpu"].missing():
        problems.append(missing)
        return {"present": False, "reason": missing}
    from flashlla.ops import cpu

    try:
        return {"present": True, **cpu.describe()}
    except ValueError as error:
        problems.append(str(error))
        return {"present": True, "reason": str(error)}


def _devices() -> list[str]:
    devices = [f"cpu ({platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    return devices


def _environment(problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, read in VARIABLES.items():
        try:
            values[name] = read()
        except ValueError as error:
            values[name] = "invalid"
            problems.append(str(error))
    return values


def _choice(device: str, dtype: torch.dtype, problems: list[str]) -> dict[str, Any]:
    """Which backend ``"auto"`` takes, and why; and why each other one would be refused."""
    others = {
        name: _backends.rejection(name, device, dtype) or _backends.BACKENDS[name].summary
        for name in _backends.BACKENDS
    }
    try:
        choice = _backends.choose("auto", device, dtype)
    except (ValueError, NotImplementedError) as error:
        problems.append(str(error))
        return {"backend": None, "reason": str(error), "backends": others}
    return {"backend": choice.name, "reason": choice.reason, "backends": others}


def _trials(device: str, problems: list[str]) -> dict[str, str]:
    """A small call of every backend that fits, against the reference in float64."""
    trials = {}
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(TRIAL_SHAPE, generator=generator) for _ in range(3))
    expected = lla_attention(q.double(), k.double(), v.double(), ridge=1.0, backend="reference")
    try:
        q, k, v = (t.to(device) for t in (q, k, v))
    except (RuntimeError, AssertionError) as error:
        problems.append(f"device {device}: {str(error).splitlines()[0]}")
        return {}
    for name in _backends.BACKENDS:
        if (
            _backends.rejection(name, q.device.type, q.dtype)
            or q.device.type in _backends.BACKENDS[name].named_only
        ):
            continue
        try:
            out = lla_attention(q, k, v, ridge=1.0, backend=name)
        except Exception as error:  # whatever it is, it is what the user wants to know
            trials[name] = f"failed: {error}"
            problems.append(f"backend {name!r} failed: {error}")
            continue
        difference = ((out.cpu() - expected).abs().max() / expected.abs().max()).item()
        trials[name] = f"relative error {difference:.1e}"
        if not difference <= TRIAL_TOLERANCE:
            problems.append(f"backend {name!r} is wrong: relative error {difference:.1e}; please report this")
    return trials


def as_text(report: dict[str, Any]) -> str:
    """The report for people."""
    call, extension = report["call"], report["extension"]
    lines = ["versions"]
    lines += [f"  {name:14}{version or 'not installed'}" for name, version in report["versions"].items()]
    lines += ["compiled extension"]
    if not extension["present"] or "reason" in extension:
        lines += [f"  {extension['reason']}"]
    else:
        lines += [
            f"  instruction set  {extension['instruction_set']}",
            f"  available        {', '.join(extension['available'])}",
            f"  threads          {extension['threads']}",
        ]
    lines += ["devices", *(f"  {device}" for device in report["devices"])]
    lines += [f"  torch uses {report['threads']} threads"]
    lines += ["environment"]
    for name, value in report["environment"].items():
        lines += [f"  {name:22}{'not set' if value is None else value}"]
    shape = ", ".join(map(str, call["shape"]))
    lines += [f"a call with [{shape}], {call['dtype']}, on {call['device']}, backend='auto'"]
    lines += [f"  takes {call['backend'] or 'no backend'}: {call['reason']}"]
    lines += [f"  {name:10} {why}" for name, why in call["backends"].items()]
    lines += ["trial calls, against the reference in float64"]
    lines += [f"  {name:10} {result}" for name, result in report["trials"].items()]
    lines += ["problems"]
    lines += [f"  {problem}" for problem in report["problems"]] or ["  none"]
    return "\n".join(lines)
