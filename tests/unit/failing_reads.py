"""A library for LD_PRELOAD that lets reads of one file fail with EIO, as a disk or a file server does that is dying."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_bad(int file) {
    char link[64], path[4096];
    const char *bad = getenv("FAILING_READS");
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (bad == NULL || length < 0) return 0;
    path[length] = 0;
    return strstr(path, bad) != NULL;
}

#define FAIL_OR(name, declared, passed)                                   \
    ssize_t name declared {                                                     \
        if (is_bad(file)) { errno = EIO; return -1; }                           \
        return ((ssize_t (*) declared) dlsym(RTLD_NEXT, #name)) passed;         \
    }

FAIL_OR(read, (int file, void *data, size_t size), (file, data, size))
FAIL_OR(pread, (int file, void *data, size_t size, off_t at), (file, data, size, at))
FAIL_OR(pread64, (int file, void *data, size_t size, off64_t at), (file, data, size, at))
FAIL_OR(preadv, (int file, const struct iovec *parts, int count, off_t at), (file, parts, count, at))
FAIL_OR(preadv64, (int file, const struct iovec *parts, int count, off64_t at), (file, parts, count, at))
FAIL_OR(preadv2, (int file, const struct iovec *parts, int count, off_t at, int flags), (file, parts, count, at, flags))
FAIL_OR(preadv64v2, (int file, const struct iovec *parts, int count, off64_t at, int flags), (file, parts, count, at, flags))
"""


def failing_reads(folder: Path, part_of_path: str) -> dict[str, str]:
    """The environment of a process whose reads of files with `part_of_path` in their path fail; the library is built in `folder`."""
    (folder / "failing_reads.c").write_text(_SOURCE)
    library = folder / "failing_reads.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "failing_reads.c", "-ldl"], check=True)
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests/unit'}"
    return {**os.environ, "PYTHONPATH": paths, "LD_PRELOAD": str(library), "FAILING_READS": part_of_path}
