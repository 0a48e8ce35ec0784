"""Runs one untrusted program, confined; started by `sandbox.py` as a process of its own.

Standard input: a line of JSON with the limits and a word, then the program. The word comes back on
standard output only when the program has run to its end: one that leaves early, however it does,
has not. Needs nothing but Python's standard library, and Linux.

What is taken away before the program begins: the network (a namespace of its own without
interfaces), writing anywhere but in the working directory (Landlock), memory, CPU time, file size
and core dumps (limits). It may read files that this user may read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys

REFUSED = 97  # exit status: this machine can't confine
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_NO_NEW_PRIVS = 38
_PATH_BENEATH = 1
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))  # of Landlock's ABI 3


class _Ruleset(ctypes.Structure):
    _fields_ = [("handled_access_fs", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def main() -> int:
    wanted = json.loads(sys.stdin.readline())
    program = sys.stdin.read()
    answer = os.dup(1)
    silent = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(silent, fd)
    try:
        confine(wanted["memory"], wanted["seconds"], wanted["file_size"])
    except OSError:
        return REFUSED
    exec(compile(program, "program", "exec"), {"__name__": "program"})
    os.write(answer, wanted["word"].encode())
    return 0


def confine(memory: int, seconds: int, file_size: int) -> None:
    """Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.unshare(_NEW_USER | _NEW_NET))
    _checked(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _write_only_here(libc)
    limits = (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_CORE, 0),
    )
    for what, most in limits:
        resource.setrlimit(what, (most, most))


def _write_only_here(libc: ctypes.CDLL) -> None:
    if libc.syscall(_CREATE_RULESET, None, 0, 1) < 3:
        raise OSError("Landlock of Linux 6.2 or later is needed")
    rules = _Ruleset(_WRITES)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0))
    here = os.open(".", os.O_PATH)
    beneath = _PathBeneath(_WRITES, here)
    _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0))
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    sys.exit(main())
