"""The table says what the families say, and an unknown architecture meets a helpful error."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from octavo.core.errors import UnsupportedError
from octavo.spec.table import FAMILIES, Entry, family_for_gguf, family_for_hf


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda entry: entry.module)
def test_an_entry_agrees_with_its_family(entry: Entry) -> None:
    kind = getattr(importlib.import_module(f"octavo.spec.families.{entry.module}"), entry.type)
    assert (kind.name, kind.architectures, kind.gguf_architectures) == (
        entry.module,
        entry.hf,
        entry.gguf,
    )
    for name in entry.hf:
        assert isinstance(family_for_hf(name), kind)
    for name in entry.gguf:
        assert isinstance(family_for_gguf(name), kind)


def test_an_unknown_architecture_names_the_nearest_and_all_known() -> None:
    with pytest.raises(UnsupportedError) as caught:
        family_for_hf("Qwen2MoeForCausalLM")
    text = str(caught.value)
    assert "'Qwen2MoeForCausalLM' is not supported" in text
    assert "The nearest is 'Qwen" in text
    assert all(name in text for entry in FAMILIES for name in entry.hf)
    with pytest.raises(UnsupportedError, match="The nearest is 'gemma[23]'"):
        family_for_gguf("gemma")
    with pytest.raises(UnsupportedError) as caught:
        family_for_gguf("wav")
    assert "nearest" not in str(caught.value)


def test_families_are_imported_only_when_asked() -> None:
    code = (
        "import sys, octavo.spec.table as t; t.family_for_hf('LlamaForCausalLM');"
        "loaded = [m for m in sys.modules if m.startswith('octavo.spec.families.')];"
        "assert loaded == ['octavo.spec.families.llama'], loaded;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
