"""What each GGUF tensor type is as a `NumberFormat`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from octavo.formats.number_format import NumberFormat

GGUF_FORMATS: Mapping[str, NumberFormat] = MappingProxyType(
    {
        name: NumberFormat.parse(text)
        for name, text in (
            ("F32", "fp32"),
            ("F16", "fp16"),
            ("BF16", "bf16"),
            ("Q4_0", "int4_g32"),
            ("Q4_1", "int4_g32_offset"),
            ("Q5_0", "int5_g32"),
            ("Q5_1", "int5_g32_offset"),
            ("Q8_0", "int8_g32"),
            ("Q2_K", "int2_g16_offset_su4x256"),
            ("Q3_K", "int3_g16_si6x256"),
            ("Q4_K", "int4_g32_offset_su6x256"),
            ("Q5_K", "int5_g32_offset_su6x256"),
            ("Q6_K", "int6_g16_si8x256"),
            ("IQ4_NL", "iq4nl_g32"),
            ("IQ4_XS", "iq4nl_g32_si6x256"),
        )
    }
)


def gguf_type_of(format: NumberFormat) -> str | None:
    """The GGUF type whose blocks hold exactly this format, or None."""
    return next((name for name, known in GGUF_FORMATS.items() if known == format), None)
