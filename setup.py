"""The compiled extension; everything else is in pyproject.toml. Torch is not needed to build it."""

import os
import platform
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

X86_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
}
CSRC = Path("csrc/cpu")
# These come behind CFLAGS, so that a level there would be without effect.
LEVEL = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]


class BuildExtension(build_ext):
    """Compiles each instruction set's file with that set's flags."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def with_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):
            name = src.rsplit("isa_", 1)[-1].removesuffix(".cpp")
            return compile_one(obj, src, ext, cc_args, [*extra_postargs, *X86_SETS.get(name, [])], pp_opts)

        self.compiler._compile = with_flags
        try:
            with ParallelCompile():
                super().build_extension(ext)
        finally:
            self.compiler._compile = compile_one


sets = ["baseline", *(X86_SETS if platform.machine() in ("x86_64", "AMD64") else ())]
extension = Pybind11Extension(
    "flashlla._C",
    [
        "csrc/bindings/module.cpp",
        "csrc/cpu/runtime.cpp",
        "csrc/cpu/dispatch.cpp",
        *(f"csrc/cpu/isa_{name}.cpp" for name in sets),
    ],
    depends=[str(path) for pattern in ("*.h", "*.inc") for path in sorted(CSRC.glob(pattern))],
    cxx_std=17,
    extra_compile_args=[*LEVEL, "-ffp-contract=fast", "-fno-math-errno", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    package_dir={
        "flashlla": "flashlla",
        "flashlla.models": "models",
        "flashlla.experiments": "experiments",
        "flashlla._csrc": "csrc",
    },
    packages=[
        "flashlla",
        "flashlla._csrc",
        *(f"flashlla.{name}" for name in find_packages("flashlla")),
        *(f"flashlla.{name}" for name in find_packages(".", include=["models*", "experiments*"])),
    ],
    # All that is packed beside modules, and py.typed and *.pyi, which setuptools adds by itself. CUDA sources
    # are compiled where they run, all others are in the extension. Of published results there is what
    # `flashlla report` reads.
    include_package_data=False,
    package_data={
        "": ["results/*/table.parquet", "results/*/command.txt"],
        "flashlla._csrc": ["cuda/*.cu", "include/flashlla/*.h"],
        "flashlla.experiments.common.report": ["*.j2"],
    },
)
