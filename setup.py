"""Builds the extension modules; everything else about the package stands in pyproject.toml."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

X86 = ("x86_64", "AMD64")
GNU = "__builtin_cpu_supports"
AVX512 = ["-mavx512f", "-mavx512bw", "-mfma"]
# Best first: name, machines (None: any), compiler flags, test in C that this CPU can run it.
ISAS = [
    ("avx512vnni", X86, [*AVX512, "-mavx512vnni"], f'{GNU}("avx512vnni") && {GNU}("avx512bw")'),
    ("avx512", X86, AVX512, f'{GNU}("avx512bw")'),
    ("avx2", X86, ["-mavx2", "-mfma", "-mf16c"], f'{GNU}("avx2") && {GNU}("fma") && has_f16c()'),
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
    "rnnfast.native._arenas": [],
    "rnnfast.native._interrupts": [],
    "rnnfast.native._engine": [],
    "rnnfast.native._backward": [],
    "rnnfast.native._arrays": [],
    "rnnfast.native._formulas": [],
    "rnnfast.native._programs": ["program.c"],
    "rnnfast.native._plans": [],
    "rnnfast.native._blas": [],
    "rnnfast.native._locks": [],
    "rnnfast.streaming._pools": [],
    "rnnfast.streaming._streams": [],
    "rnnfast.serving._requests": [],
}
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    "freethreading_compatible": True,
}


def cythonized(extensions, **options):
    """The extensions with their .pyx files translated to C."""
    return cythonize(extensions, compiler_directives=DIRECTIVES, **options)


class BuildKernels(build_ext):
    """Runs Cython, compiles kernels.c once for each instruction set and links those objects into one extension."""

    def finalize_options(self):
        super().finalize_options()
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.parallel = self.parallel or allowed

    def run(self):
        # Cython runs here, not when setup() is called: pip asks for metadata several times, and an sdist has the .pyx.
        for ext, new in zip(self.extensions, cythonized(self.extensions, nthreads=self.parallel)):
            ext.sources = new.sources
        super().run()

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


class SourceArchive(sdist):
    """Leaves out generated C, which is made anew for each Python, and tests, which need the models of a checkout."""

    def make_release_tree(self, base_dir, files):
        left_out = [f"{name.replace('.', '/')}.c" for name in EXTENSIONS]
        super().make_release_tree(base_dir, [f for f in files if f not in left_out and not f.startswith("tests")])


def fail_on_hint(position, message, env):
    """Report a performance hint of Cython as an error."""
    Errors.error(position, f"performance hint: {message}")


headers = [f"{KERNELS}/{name}" for name in sorted(os.listdir(KERNELS)) if name.endswith(".h")]
extensions = []
for name, files in EXTENSIONS.items():
    path = name.replace(".", "/")
    declarations = [f"{path}.pxd"] if os.path.exists(f"{path}.pxd") else []
    extensions.append(
        Extension(
            name,
            [f"{path}.pyx", *(f"{KERNELS}/{file}" for file in files)],
            extra_compile_args=CFLAGS,
            include_dirs=[KERNELS, numpy.get_include()],
            depends=declarations + headers,
        )
    )
extensions[0].depends.append(f"{KERNELS}/kernels.c")
extensions[0].extra_link_args = ["-pthread"]
extensions[0].define_macros = [("RNNFAST_ISAS", " ".join(f"ISA({name}, {test})" for name, _, _, test in isas))]
# RNNFAST_STRICT=1 translates every .pyx file anew, into build/strict, and fails on Cython's performance hints. It is
# for development, because hints depend on the version of Cython. With `setup.py --name` nothing else is done.
if os.environ.get("RNNFAST_STRICT") == "1":
    from Cython.Compiler import Errors, ExprNodes, PyrexTypes, Symtab

    for module in (ExprNodes, PyrexTypes, Symtab):
        module.performance_hint = fail_on_hint
    cythonized(extensions, force=True, build_dir="build/strict")  # in this process: others would not see the change
if __name__ == "__main__":  # Cython's processes import this file where they do not begin as a fork, as of Python 3.14
    setup(cmdclass={"build_ext": BuildKernels, "sdist": SourceArchive}, ext_modules=extensions)
