"""Lays out a CUDA toolkit from Python packages, for `cargo build --features cuda` on a machine without CUDA or a GPU.

    python3 scripts/cuda_toolkit.py target/cuda-toolkit
    source target/cuda-toolkit/env
    cargo build --release --features cuda

Needs pip, a C compiler, `ar` and `nm`; x86-64 Linux. The link step finds no shared library of CUDA there, but archives of
small jumps: each opens its library at the first call. A program so linked starts on any machine, and finds out by itself
whether there is a GPU.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cublas==13.0.*",
    "nvidia-curand==10.4.*",
    "nvidia-cuda-nvrtc==13.0.*",
]

# Archive, library that it opens, pattern of the functions that are called.
LAZY = [
    ("cuda", "libcuda.so.1", r"cu[A-Z]\w+"),
    ("cublas", "libcublas.so.13", r"cublas[A-Z]\w+"),
    ("cublasLt", "libcublasLt.so.13", r"cublasLt\w+"),
    ("curand", "libcurand.so.10", r"curand[A-Z]\w+"),
    ("nvrtc", "libnvrtc.so.13", r"nvrtc[A-Z]\w+"),
]

RESOLVER = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const names[] = { %(names)s };

__attribute__((visibility("hidden"))) void *lazy_resolve_%(archive)s(unsigned index) {
    void *library = dlopen("%(library)s", RTLD_NOW | RTLD_GLOBAL);
    void *function = library ? dlsym(library, names[index]) : NULL;
    if (!function) {
        fprintf(stderr, "%(library)s, needed for %%s: %%s\n", names[index], dlerror());
        abort();
    }
    return function;
}
"""

# At a function's first call its slot leads to the resolver, with every register that may hold an argument kept.
PROLOGUE = """
    .text
lazy_common:
    pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9; pushq %rax
    subq $136, %rsp
    movups %xmm0, (%rsp); movups %xmm1, 16(%rsp); movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp); movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)
    movl 192(%rsp), %edi
    call lazy_resolve_ARCHIVE
    movl 192(%rsp), %edi
    leaq slots(%rip), %rsi
    movq %rax, (%rsi,%rdi,8)
    movq %rax, %r11
    movups (%rsp), %xmm0; movups 16(%rsp), %xmm1; movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5; movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7
    addq $136, %rsp
    popq %rax; popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi
    addq $8, %rsp
    jmpq *%r11
"""


def functions(toolkit, archive, library, pattern):
    """Names that may be called: of the driver those of its header, of the others those that the library has."""
    if archive == "cuda":
        header = (toolkit / "include" / "cuda.h").read_text()
        declared = set(re.findall(rf"CUDAAPI\s+({pattern})\s*\(", header))
        renamed = re.findall(rf"#define\s+({pattern})\s+({pattern})\s*$", header, re.MULTILINE)
        return sorted(declared | {name for pair in renamed for name in pair})
    path = next((toolkit / "packages").rglob(library))
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    # A library may export its symbols with a version behind an @.
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
    return sorted(name for name in names if re.fullmatch(pattern, name))


def lazy_archive(toolkit, archive, library, pattern):
    names = functions(toolkit, archive, library, pattern)
    if not names:
        sys.exit(f"{library}: no function named {pattern}")
    build = toolkit / "lazy"
    build.mkdir(exist_ok=True)
    source, assembly = build / f"{archive}.c", build / f"{archive}_jumps.s"
    quoted = ", ".join(f'"{name}"' for name in names)
    source.write_text(RESOLVER % {"names": quoted, "archive": archive, "library": library})
    parts = [PROLOGUE.replace("ARCHIVE", archive)]
    for i, name in enumerate(names):
        parts.append(f"    .globl {name}\n    .type {name}, @function\n{name}: jmpq *slots+{8 * i}(%rip)\n")
        parts.append(f"first_{i}: pushq ${i}\n    jmp lazy_common\n")
    slots = "\n".join(f"    .quad first_{i}" for i in range(len(names)))
    parts.append(f"    .data\n    .p2align 3\nslots:\n{slots}\n    .section .note.GNU-stack,\"\",@progbits\n")
    assembly.write_text("".join(parts))
    objects = []
    for path in (source, assembly):
        objects.append(path.with_suffix(".o"))
        subprocess.run(["cc", "-O1", "-fPIC", "-c", path, "-o", objects[-1]], check=True)
    target = toolkit / "lib64" / f"lib{archive}.a"
    target.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", target, *objects], check=True)


def link(at, to):
    at.unlink(missing_ok=True)
    at.symlink_to(to)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the toolkit goes, about 1.2 GB")
    toolkit = parser.parse_args().directory.resolve()
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("this lays out a toolkit for x86-64 Linux alone")
    packages = toolkit / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--target", packages]
    subprocess.run([*pip, *PACKAGES], check=True)
    root = packages / "nvidia" / "cu13"
    for name in ("bin", "nvvm", "include"):
        link(toolkit / name, root / name)
    (toolkit / "lib64").mkdir(exist_ok=True)
    # The runtime that candle's own kernels use; it opens the driver by itself.
    link(toolkit / "lib64" / "libcudart.a", root / "lib" / "libcudart_static.a")
    link(toolkit / "lib64" / "libcudadevrt.a", root / "lib" / "libcudadevrt.a")
    for archive, library, pattern in LAZY:
        lazy_archive(toolkit, archive, library, pattern)
    settings = {
        "CUDA_HOME": toolkit,
        "CUDA_PATH": toolkit,
        "NVCC": toolkit / "bin" / "nvcc",
        # What runs on every card from here on: the driver compiles it further.
        "CUDA_COMPUTE_CAP": 80,
        "CUDARC_CUDA_VERSION": 13000,
    }
    lines = [f"export {name}='{value}'" for name, value in settings.items()]
    lines.append(f"export PATH='{toolkit / 'bin'}':\"$PATH\"")
    (toolkit / "env").write_text("\n".join(lines) + "\n")
    print(f"source {os.path.relpath(toolkit / 'env')}")


if __name__ == "__main__":
    main()
