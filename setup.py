import os
import platform

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = ("x86_64", "AMD64")
GNU = "__builtin_cpu_supports"
# Best first: name, machines (None: any), compiler flags, test in C that this CPU can run it.
ISAS = [
    ("avx512", X86, ["-mavx512f", "-mfma"], f'{GNU}("avx512f")'),
    ("avx2", X86, ["-mavx2", "-mfma"], f'{GNU}("avx2") && {GNU}("fma")'),
    ("generic", None, ["-O2"], "1"),
]
KERNELS = "rnnfast/kernels"
CFLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-g0",
          *os.environ.get("RNNFAST_CFLAGS", "").split()]
isas = [row for row in ISAS if row[1] is None or platform.machine() in row[1]]


class BuildKernels(build_ext):
    """Compiles kernels.c once for each instruction set and links the objects into one extension."""

    def build_extension(self, ext):
        if ext.name == "rnnfast._kernels":
            ext.extra_objects = [
                obj
                for name, _, flags, _ in isas
                for obj in self.compiler.compile([f"{KERNELS}/kernels.c"], output_dir=f"{self.build_temp}/{name}",
                                                 macros=[("ISA", name)], depends=ext.depends,
                                                 extra_postargs=CFLAGS + flags)
            ]
        super().build_extension(ext)


headers = [f"{KERNELS}/{name}" for name in sorted(os.listdir(KERNELS)) if name.endswith(".h")]
common = dict(extra_compile_args=CFLAGS, include_dirs=[KERNELS, numpy.get_include()], depends=headers)
setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=cythonize(
        [
            Extension("rnnfast._kernels", ["rnnfast/_kernels.pyx", f"{KERNELS}/dispatch.c", f"{KERNELS}/pool.c"],
                      extra_link_args=["-pthread"],
                      define_macros=[("RNNFAST_ISAS", " ".join(f"ISA({name}, {test})" for name, _, _, test in isas))],
                      **common),
            Extension("rnnfast._engine", ["rnnfast/_engine.pyx"], **common),
            Extension("rnnfast._backward", ["rnnfast/_backward.pyx"], **common),
            Extension("rnnfast._plan", ["rnnfast/_plan.pyx", f"{KERNELS}/program.c"], **common),
            Extension("rnnfast._calls", ["rnnfast/_calls.pyx"], **common),
            Extension("rnnfast._pools", ["rnnfast/_pools.pyx"], **common),
            Extension("rnnfast._streams", ["rnnfast/_streams.pyx"], **common),
            Extension("rnnfast._blas", ["rnnfast/_blas.pyx"], **common),
        ],
        compiler_directives={
            "language_level": 3, "cdivision": True, "initializedcheck": False, "embedsignature": True,
        },
    ),
)
