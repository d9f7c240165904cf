"""A libcuda.so.1 whose copies are done when something asks for them again and again, and not before: the memory that
they come from must still be as it was, and that which they go to not have been looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEVICE, STREAM = 3, 7  # the only ones that there are

COMPILER = shutil.which("g++") or shutil.which("c++")
SOURCE = r"""
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
static std::mutex mutex;
static std::deque<std::function<void()>> stream;
static size_t begun, done;
static std::map<void *, size_t> events;
static thread_local void *current;
static void until(size_t place) {
    for (; done < place; ++done) stream.front()(), stream.pop_front();
}
extern "C" {
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(size_t)(device * 100);
    return device == 43 ? 0 : 101;
}
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuMemcpyHtoDAsync_v2(size_t to, const void *from, size_t n, void *given) {
    std::lock_guard lock(mutex);
    if (current != (void *)4300 || given != (void *)7) return 201;
    stream.push_back([=] { memcpy((void *)to, from, n); }), ++begun;
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, size_t from, size_t n, void *given) {
    std::lock_guard lock(mutex);
    if (current != (void *)4300 || given != (void *)7) return 201;
    stream.push_back([=] { memcpy(to, (void *)from, n); }), ++begun;
    return 0;
}
int cuEventCreate(void **event, unsigned flags) { *event = new char(0); return flags == 2 ? 0 : 1; }
int cuEventDestroy_v2(void *event) { delete (char *)event; return 0; }
int cuEventRecord(void *event, void *) { std::lock_guard lock(mutex); events[event] = begun; return 0; }
int cuEventQuery(void *event) {
    std::lock_guard lock(mutex);
    if (++*(char *)event % 3) return 600;  // not ready
    until(events[event]);
    return 0;
}
int cuStreamSynchronize(void *) { std::lock_guard lock(mutex); until(begun); return 0; }
int cuGetErrorString(int status, const char **text) {
    *text = status == 101 ? "invalid device ordinal" : nullptr;
    return 0;
}
}
"""


def build(folder: Path) -> Path:
    """The library, in a folder; skips the test where there is no compiler."""
    if COMPILER is None:
        pytest.skip("no g++ here")
    (folder / "cuda.cpp").write_text(SOURCE)
    options = ["-std=c++17", "-O1", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *options, "-o", "libcuda.so.1", "cuda.cpp"], cwd=folder, check=True)
    return folder


def run(folder: Path, tests: Path, code: str, files: list[int]) -> subprocess.CompletedProcess[str]:
    """Python code, in a process of its own that finds this driver, the modules of `tests` and open files."""
    paths = os.pathsep.join(map(str, (tests, Path(__file__).parent)))
    own = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | own,
        pass_fds=files,
        capture_output=True,
        text=True,
        check=False,
    )
