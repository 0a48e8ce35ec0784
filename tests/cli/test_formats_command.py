from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from octavo.cli.formats import command
from octavo.core.errors import FormatError
from octavo.formats.number_format import COMMON_NAMES


def _output(*words: str) -> str:
    result = CliRunner().invoke(command, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_list_names_every_common_format() -> None:
    output = _output()
    assert all(name in output for name in COMMON_NAMES)


def test_the_list_as_json() -> None:
    formats = json.loads(_output("--json"))["formats"]
    assert [each["name"] for each in formats] == list(COMMON_NAMES)
    by_name = {each["name"]: each for each in formats}
    assert by_name["int4_g32"]["gguf_type"] == "Q4_0"
    assert by_name["int4_g128"]["bits_per_weight"] == {"576": None, "4096": 4.125}


@pytest.mark.parametrize("name", COMMON_NAMES)
def test_each_can_be_drawn(name: str) -> None:
    output = _output(name)
    for word in (name, "bits per weight, 576 x 576", "decimal digits", "codes"):
        assert word in output


def test_a_float_is_drawn_field_by_field() -> None:
    output = _output("bf16")
    for word in ("0 01111111 0000000", "sign 1", "exponent 8", "fraction 7", "3.38953e+38"):
        assert word in output


def test_a_gguf_name_draws_its_format() -> None:
    output = _output("q4_k")
    assert "int4_g32_offset_su6x256 (GGUF Q4_K)" in output
    assert "super-scale and super-offset (fp16)" in output
    assert "s * code + offset" in output


def test_one_format_as_json() -> None:
    facts = json.loads(_output("int4_g32", "--json"))
    assert facts["fields"] == [["code", 4]]
    assert (facts["smallest"], facts["largest"], facts["codes"]) == (-8, 7, 16)
    assert facts["bits_per_weight"]["576"] == 4.5


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    result = CliRunner().invoke(command, ["int4_g3x"])
    assert isinstance(result.exception, FormatError)
    assert "int4_g32" in str(result.exception)


def test_formats_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from octavo.cli.formats import command;"
        "r = CliRunner().invoke(command, ['int4_g32']); assert r.exit_code == 0, r.output;"
        "print(sorted({'torch', 'transformers', 'fastapi', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
