"""Test settings shared by all: a fixed hypothesis profile and the support package on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).parent))

hypothesis.settings.register_profile("octavo", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("octavo")
