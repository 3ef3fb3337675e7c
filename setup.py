"""Builds the extension modules; everything else about the package stands in pyproject.toml."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor

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
CFLAGS = [
    "-std=c11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-g0",
    *os.environ.get("RNNFAST_CFLAGS", "").split(),
]
isas = [row for row in ISAS if row[1] is None or platform.machine() in row[1]]

# Extension module -> the C files that are linked with it.
EXTENSIONS = {
    "rnnfast.native._kernels": ["dispatch.c", "pool.c"],
    "rnnfast.native._engine": [],
    "rnnfast.native._backward": [],
    "rnnfast.native._arrays": [],
    "rnnfast.native._programs": ["program.c"],
    "rnnfast.native._plans": [],
    "rnnfast.native._blas": [],
    "rnnfast.streaming._pools": [],
    "rnnfast.streaming._streams": [],
    "rnnfast.serving._requests": [],
}


class BuildKernels(build_ext):
    """Compiles kernels.c once for each instruction set and links the objects into one extension."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        if ext.name == "rnnfast.native._kernels":
            with ThreadPoolExecutor(self.parallel) as threads:
                ext.extra_objects = [path for paths in threads.map(self.compile_kernels, isas) for path in paths]
        super().build_extension(ext)

    def compile_kernels(self, isa):
        """The paths of the object files of one instruction set."""
        name, _, flags, _ = isa
        return self.compiler.compile(
            [f"{KERNELS}/kernels.c"],
            output_dir=f"{self.build_temp}/{name}",
            macros=[("ISA", name)],
            depends=headers,
            extra_postargs=CFLAGS + flags,
        )


headers = [f"{KERNELS}/{name}" for name in sorted(os.listdir(KERNELS)) if name.endswith(".h")]
extensions = [
    Extension(
        name,
        [f"{name.replace('.', '/')}.pyx", *(f"{KERNELS}/{file}" for file in files)],
        extra_compile_args=CFLAGS,
        include_dirs=[KERNELS, numpy.get_include()],
        depends=headers,
    )
    for name, files in EXTENSIONS.items()
]
extensions[0].extra_link_args = ["-pthread"]
extensions[0].define_macros = [("RNNFAST_ISAS", " ".join(f"ISA({name}, {test})" for name, _, _, test in isas))]
setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=cythonize(
        extensions,
        nthreads=os.cpu_count(),
        compiler_directives={"language_level": 3, "cdivision": True, "initializedcheck": False, "embedsignature": True},
    ),
)
