"""``import flashlla``: what it needs, what it leaves alone, and how long it takes."""

import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence

OPTIONAL = ("triton", "cupy", "transformers", "rich", "matplotlib", "safetensors")
KERNELS = ("flashlla._C", "flashlla.ops.cpu", "flashlla.ops.blockwise")
MODULES = ("flashlla", "flashlla.nn", "flashlla.models", "flashlla.cli", "flashlla.testing")


def run(code: str, cases: Sequence[object] = (None,)) -> list[str]:
    """The lines that ``code`` prints, for every ``case`` in a process of its own.

    All are forks of one that has imported torch, which takes longer than anything that is tested here.
    """
    script = f"""
import os, sys, torch
for case in {cases!r}:
    child = os.fork()
    if child == 0:
{textwrap.indent(textwrap.dedent(code), " " * 8)}
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed with {{case}}")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_optional_packages_are_not_needed():
    """Each is made unknown to imports in turn, and then all of them."""
    run(
        f"""
        import importlib
        sys.modules.update(dict.fromkeys(case))
        for module in {MODULES}:
            importlib.import_module(module)
        import flashlla
        q = torch.randn(1, 4, 2, 8)
        flashlla.lla_attention(q, q, q, ridge=1.0)
        """,
        [*((name,) for name in OPTIONAL), OPTIONAL],
    )


def test_import_leaves_alone_what_it_does_not_need():
    """No optional package, no GPU, and no kernel before its first use."""
    found = run(
        f"""
        before = set(sys.modules)
        import flashlla, flashlla.nn, flashlla.models, flashlla.cli
        print(torch.cuda.is_initialized())
        print(*(name for name in {OPTIONAL + KERNELS} if name in set(sys.modules) - before))
        """
    )
    assert found == ["False", ""]


def test_import_adds_little_to_that_of_torch():
    """In seconds of this process alone: other tests may run beside it."""
    timed = run(
        """
        import time
        began = time.process_time()
        import flashlla
        print(time.process_time() - began)
        """,
        range(3),
    )
    assert statistics.median(map(float, timed)) < 0.3
