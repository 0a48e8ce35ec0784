"""Typed reads: what is right comes back, what is wrong is one error naming file, key and value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.errors import ConfigError
from octavo.spec.config_reader import HARMLESS, ConfigReader


def reader(**values: object) -> ConfigReader:
    return ConfigReader(values, "config.json")


def test_typed_reads_return_what_is_there() -> None:
    config = reader(i=3, f=0.5, b=True, s="x", n=None, ints=[1, 2], fs=(1, 2.5), ss=["a"])
    assert config.int_("i") == 3
    assert config.float_("f") == 0.5
    assert config.bool_("b") is True
    assert config.str_("s") == "x"
    assert config.ints("ints") == (1, 2)
    assert config.floats("fs") == (1.0, 2.5)
    assert config.strs("ss") == ("a",)
    assert config.int_("n", 7) == 7
    assert config.int_or_none("n", 7) is None
    assert config.int_or_none("absent", 7) == 7
    assert config.float_or_none("n", 7.0) is None


def test_numpy_scalars_and_arrays_of_a_gguf_header_are_read() -> None:
    config = reader(i=np.uint32(3), f=np.float32(0.5), fs=np.ones(2, np.float32))
    assert config.int_("i") == 3
    assert config.float_("f") == 0.5
    assert config.floats("fs") == (1.0, 1.0)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "3", True, [3], {}, 2**40])
def test_a_wrong_integer_names_file_key_found_and_expected(bad: object) -> None:
    with pytest.raises(ConfigError) as caught:
        reader(hidden_size=bad).int_("hidden_size")
    for part in ("config.json", "hidden_size", repr(bad), "expected an integer from 1"):
        assert part in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1.0, "1", True, float("nan"), float("inf"), None])
def test_a_wrong_number_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="eps"):
        reader(eps=bad).float_("eps")


def test_missing_keys_and_wrong_types_are_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size is missing, expected an integer"):
        reader().int_("vocab_size")
    with pytest.raises(ConfigError, match="true or false"):
        reader(b=1).bool_("b")
    with pytest.raises(ConfigError, match="a string"):
        reader(s=1).str_("s")
    with pytest.raises(ConfigError, match="one of silu, gelu"):
        reader(act="relu").choice("act", ("silu", "gelu"))
    with pytest.raises(ConfigError, match="a list of strings"):
        reader(ss=["a", 1]).strs("ss")
    with pytest.raises(ConfigError, match="a list of integers"):
        reader(ints=np.int32(3)).ints("ints")
    with pytest.raises(ConfigError, match="False or None"):
        reader(k=True).expect("k", False, None)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        reader(s=["x"] * 1000).str_("s")
    assert len(str(caught.value)) < 160


def test_unread_keys_are_reported_with_their_path() -> None:
    config = reader(read=1, odd=2, model_type="llama", nested={"deep": 1, "known": 2})
    config.int_("read")
    config.sub("nested").int_("known")
    assert config.unread() == ("nested.deep", "odd")
    config.ignore("odd")
    with pytest.raises(ConfigError, match="unknown key 'nested.deep'"):
        config.expect_all_read()


def test_an_unread_mapping_is_reported_as_a_whole() -> None:
    assert reader(nested={"a": 1}).unread() == ("nested",)


def test_errors_of_a_nested_reader_name_the_full_key() -> None:
    with pytest.raises(ConfigError, match=r"config\.json: rope\.factor is 'x'"):
        reader(rope={"factor": "x"}).sub("rope").float_("factor")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(json_values)
def test_any_json_value_is_read_or_refused_as_a_config_error(value: object) -> None:
    config = reader(key=value)
    for read in (config.int_, config.float_, config.bool_, config.str_, config.sub):
        try:
            read("key")
        except ConfigError as error:
            assert "config.json: key" in str(error)
    for read_list in (config.ints, config.floats, config.strs):
        try:
            read_list("key")
        except ConfigError as error:
            assert "config.json: key" in str(error)


def test_harmless_keys_never_name_what_a_decoder_computes() -> None:
    meaningful = {"rope_scaling", "hidden_act", "sliding_window", "quantization_config"}
    assert not HARMLESS & meaningful
