"""Programs for Node over packages that are installed outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from octavo.io.cache import cache_directory, locked


def packages(*names: str) -> Path:
    """A directory whose node_modules have these packages, fetched at the first call. Skips the test
    where there is no Node, or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    root = cache_directory("node")
    with locked(root / ".lock"):
        if not all((root / "node_modules" / name).is_dir() for name in names):
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(root), *names]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                pytest.skip(f"npm can't install {' '.join(names)}: {done.stderr.strip()[-200:]}")
    return root / "node_modules"


def run(script: Path, modules: Path, *arguments: str) -> Any:
    """What a program prints, as JSON."""
    command = ["node", str(script), *arguments]
    environment = {**os.environ, "NODE_PATH": str(modules)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
