"""``import flashlla``: what it needs, what it leaves alone, and how long it takes."""

import statistics
import subprocess
import sys

OPTIONAL = ("triton", "cupy", "transformers", "rich", "matplotlib", "safetensors")
KERNELS = ("flashlla._C", "flashlla.ops.cpu", "flashlla.ops.blockwise")
MODULES = ("flashlla", "flashlla.nn", "flashlla.models", "flashlla.cli", "flashlla.testing")


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_optional_packages_are_not_needed():
    run(
        f"""
import builtins, importlib
import_module = builtins.__import__
def refuse(name, *args, **kwargs):
    # torch may look for them on its own account
    caller = (args[0] or {{}}).get("__name__", "") if args else ""
    if name.split(".")[0] in {OPTIONAL} and caller.split(".")[0] == "flashlla":
        raise ImportError(f"{{name}} is blocked")
    return import_module(name, *args, **kwargs)
builtins.__import__ = refuse
for module in {MODULES}:
    importlib.import_module(module)
import torch, flashlla
q = torch.randn(1, 4, 2, 8)
flashlla.lla_attention(q, q, q, ridge=1.0)
"""
    )


def test_import_leaves_alone_what_it_does_not_need():
    """No optional package, no GPU, and no kernel before its first use."""
    found = run(
        f"""
import sys, torch
before = set(sys.modules)
import flashlla, flashlla.nn, flashlla.models, flashlla.cli
print(torch.cuda.is_initialized())
print(*(name for name in {OPTIONAL + KERNELS} if name in set(sys.modules) - before))
"""
    )
    assert found.split() == ["False"]


def test_import_adds_little_to_that_of_torch():
    """In seconds of this process alone: other tests may run beside it."""
    timed = (
        "import time, torch; began = time.process_time(); import flashlla; print(time.process_time() - began)"
    )
    assert statistics.median(float(run(timed)) for _ in range(3)) < 0.3
