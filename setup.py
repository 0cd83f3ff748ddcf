"""The compiled extension; everything else is in pyproject.toml. No torch is imported, at build or link time."""

import platform

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

X86_SETS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma", "-mf16c"],
}
HEADERS = ["problem.h", "simd.h", "product.h", "pack.h", "tile.h", "solve.h", "dual.h", "forward.h", "backward.h", "decode.h"]
KERNEL_DEPENDS = [f"csrc/cpu/{name}" for name in [*HEADERS, "isa.inc"]]


class BuildExtension(build_ext):
    """Compiles each instruction set's file with that set's flags."""

    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def with_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):
            name = src.rsplit("isa_", 1)[-1].removesuffix(".cpp")
            return compile_one(obj, src, ext, cc_args, [*extra_postargs, *X86_SETS.get(name, [])], pp_opts)

        self.compiler._compile = with_flags
        try:
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
    depends=[*KERNEL_DEPENDS, "csrc/cpu/runtime.h", "csrc/cpu/parallel.h"],
    cxx_std=17,
    extra_compile_args=["-O3", "-ffp-contract=fast", "-fno-math-errno", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    package_dir={"flashlla": "flashlla", "flashlla.models": "models", "flashlla.experiments": "experiments"},
    packages=[
        "flashlla",
        *(f"flashlla.{name}" for name in find_packages("flashlla")),
        *(f"flashlla.{root}{name}" for root in ("models", "experiments") for name in ["", *("." + n for n in find_packages(root))]),
    ],
)
