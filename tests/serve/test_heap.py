"""All threads of the server's process allocate from one heap."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from octavo.serve.heap import share_one_heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def places():
    found = []
    def note():
        found.append(libc.malloc(1000) >> 26)  # a heap of a thread's own is 64 MB apart
    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
        thread.join()
    note()
    return len(set(found))

if sys.argv[1] == "shared" and not share_one_heap():
    sys.exit(77)
held = [libc.malloc(100)]
print(places())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_threads_share_the_heap():
    def run(how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False
        )

    shared, apart = run("shared"), run("apart")
    if shared.returncode == 77:
        pytest.skip("this C library has no heaps of threads")
    assert int(shared.stdout) == 1, shared.stderr
    assert int(apart.stdout) > 1
