"""Linear kernels against float64, with the error bound of their own order of operations.

gamma(n) = n u / (1 - n u), u = 2^-24, bounds the relative error of a chain of n roundings.
"""

from __future__ import annotations

import numpy as np
import pytest

from octavo._native import testing
from octavo.formats.trellis import windows
from support.packed_weights import BITS, BY_NAME, FORMS, ISAS, Case, Form, a8_group, bf16, make_case

SHAPES = [(16, 32), (40, 96), (33, 40), (16, 320), (97, 192), (5, 256)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17]
ACTS = ["a8", "a16", "abf16", "a32"]
TOP = {"a8": 127, "a16": 32639}  # the largest code of the formats of integers


CODES = (2, 3, 4, 5, 6, 8)
AFFINE = ("q8_0", "int6_channel", "q5_0", "q4_0", "int3_g64", "int2_g32")


def gamma(n: int) -> float:
    return n * 2.0**-24 / (1 - n * 2.0**-24)


def activations(m: int, k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k)).astype(np.float32)


def fits(form: Form, k: int) -> bool:
    if form.code == "trellis" and k % 32:
        return False
    return form.group in (0, 16) or form.group >= k or (k % 32 == 0 and k % form.group == 0)


def serves(form: Form, act: str) -> bool:
    if form.levels and act == "a16":
        return False  # 16-bit levels times 16-bit activations: sums beyond 32 bits
    return not (act in TOP and (form.name == "fp8" or form.code not in BITS))


PAIRS = [(form, act) for form in FORMS for act in ACTS if serves(form, act)]


def quantized(x: np.ndarray, form: Form, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, repeated over the inputs: [m, k] each, as docs/numerics.md has them."""
    m, k = x.shape
    size = a8_group(form, k)
    padded = np.zeros((m, -(-k // size) * size), np.float32)
    padded[:, :k] = x
    grouped = padded.reshape(m, -1, size)
    peak = np.abs(grouped).max(-1, keepdims=True)
    live = peak >= np.float32(2.0**-118)
    inverse = np.divide(np.float32(top), peak, out=np.zeros_like(peak), where=live)
    scale = np.where(live, peak / np.float32(top), np.float32(0))
    codes = np.rint(grouped * inverse)
    codes += (codes + 128) % 256 == 0  # no low byte is -128
    return codes.reshape(m, -1)[:, :k], np.repeat(scale[..., 0], size, 1)[:, :k]


def expected_integer(
    case: Case, form: Form, x: np.ndarray, act: str
) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the bound on the kernel's error.

    Each step rounds s * sa and the fma (a16: also its sum to fp32), for products and for offsets:
    at most 2 steps + 2 roundings on any term.
    """
    q, sa = quantized(x, form, TOP[act])
    rows = (q * sa.astype(np.float64)).T
    y = case.products.astype(np.float64) @ rows + case.offsets.astype(np.float64) @ rows
    k = x.shape[1]
    groups = [slice(i, min(i + case.step, k)) for i in range(0, k, case.step)]
    size = sum(
        np.abs(case.products[:, g].astype(np.float64) @ rows[g])
        + np.abs(case.offsets[:, g].astype(np.float64) @ rows[g])
        for g in groups
    )
    return y.T, (gamma(4 * len(groups) + 4) * size + slack(case, rows, 3 if form.levels else 1)).T


def slack(case: Case, rows: np.ndarray, roundings: int) -> np.ndarray:
    """`products` holds fl(s * v), the kernel uses s * v exactly: one rounding of each term. A
    16-bit level's step is rounded into both as well."""
    return gamma(roundings) * (np.abs(case.products).astype(np.float64) @ np.abs(rows))


def expected_float(case: Case, x: np.ndarray, act: str) -> tuple[np.ndarray, np.ndarray]:
    """The value in float64, and the bound on the kernel's error.

    Weights that hold values are one chain over all inputs. Codes go in steps: a term is rounded at
    most step / 2 times in its sum, once where the two sums meet, once where a zero point comes in,
    and once or (with offsets) twice in y at each step from there on; the sum of inputs that a zero
    point or an offset multiplies is rounded at most 7 times, a zero point's product once more.
    `values` holds fl(s * v), the kernel uses s * v exactly: one rounding of each term.
    """
    v = (bf16(x) if act == "abf16" else x).astype(np.float64)
    k = x.shape[1]
    values, offsets = case.values.astype(np.float64), case.offsets.astype(np.float64)
    y = v @ (values + offsets).T
    size = np.abs(v) @ (case.sizes.astype(np.float64) + np.abs(offsets)).T
    if not case.coded:
        return y, gamma(k + 1) * size
    steps = -(-k // case.step)
    chain = max(case.step // 2 + 2, 8) + 2 * steps
    return y, gamma(chain + 1) * size + gamma(1) * (np.abs(v) @ np.abs(values).T)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "act"), PAIRS, ids=lambda v: getattr(v, "name", v))
def test_equals_float64_within_its_own_roundings(isa: str, form: Form, act: str) -> None:
    for i, (n, k) in enumerate(SHAPES):
        if not fits(form, k):
            continue
        case = make_case(form, n, k, seed=i)
        x = activations(3, k, seed=100 + i)
        kernel = testing.selected(isa, case.packed, act)
        y = testing.linear(isa, kernel, case.packed, x, 0, case.packed.panels)[:, :n]
        want, bound = (
            expected_integer(case, form, x, act) if act in TOP else expected_float(case, x, act)
        )
        assert (np.abs(y - want) <= bound).all(), (kernel, n, k)


@pytest.mark.parametrize("isa", [i for i in ISAS if i != "generic"])
@pytest.mark.parametrize(("form", "act"), PAIRS, ids=lambda v: getattr(v, "name", v))
def test_every_isa_gives_the_generic_bits(isa: str, form: Form, act: str) -> None:
    rounding = {name: own for name, _, _, _, _, own in testing.rows(isa)}
    for i, (n, k) in enumerate(SHAPES):
        if not fits(form, k):
            continue
        case = make_case(form, n, k, seed=i)
        kernel = testing.selected(isa, case.packed, act)
        if rounding[kernel]:
            continue
        plain = testing.selected("generic", case.packed, act)
        for m in (1, 9):
            x = activations(m, k, seed=m)
            a = testing.linear(isa, kernel, case.packed, x, 0, case.packed.panels)
            b = testing.linear("generic", plain, case.packed, x, 0, case.packed.panels)
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "act"), PAIRS, ids=lambda v: getattr(v, "name", v))
def test_a_row_does_not_depend_on_its_batch(isa: str, form: Form, act: str) -> None:
    n, k = 97, 128
    case = make_case(form, n, k, seed=7)
    kernel, panels = testing.selected(isa, case.packed, act), case.packed.panels
    x = activations(17 if isa == "generic" else 64, k, seed=8)
    alone = np.concatenate(
        [testing.linear(isa, kernel, case.packed, r[None], 0, panels) for r in x]
    )
    for m in [*ROWS, len(x)]:
        together = testing.linear(isa, kernel, case.packed, x[:m], 0, panels)
        np.testing.assert_array_equal(together.view(np.uint32), alone[:m].view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "act"), PAIRS, ids=lambda v: getattr(v, "name", v))
def test_a_range_of_panels_gives_the_same_bits_and_writes_nothing_else(
    isa: str, form: Form, act: str
) -> None:
    case = make_case(form, 150, 64, seed=3)
    kernel, panels = testing.selected(isa, case.packed, act), case.packed.panels
    for m in (1, 6, 9):
        x = activations(m, 64, seed=m)
        whole = testing.linear(isa, kernel, case.packed, x, 0, panels)
        for p0, p1 in [(0, 1), (1, 4), (3, 8), (9, 10), (2, 2), (5, 10)]:
            part = testing.linear(isa, kernel, case.packed, x, p0, p1)
            want = np.ascontiguousarray(whole[:, 16 * p0 : 16 * p1])
            np.testing.assert_array_equal(part.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", list(TOP))
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q3_k", "iq4_nl", "q8_0", "lut8", "trellis2_g64"])
def test_chosen_rows_get_the_bits_of_all_rows_and_no_other_is_written(
    isa: str, act: str, name: str
) -> None:
    case = make_case(BY_NAME[name], 97, 128, seed=5)
    kernel, panels = testing.selected(isa, case.packed, act), case.packed.panels
    x = activations(19, 128, seed=9)
    whole = testing.linear(isa, kernel, case.packed, x, 0, panels)
    for rows in ([18], [1, 4], [0, 2, 3, 5, 8, 9, 11, 12, 13, 15, 18], list(range(19)), []):
        part = testing.linear(isa, kernel, case.packed, x, 1, panels, np.array(rows, np.int32))
        want = np.ascontiguousarray(whole[rows, 16:])
        np.testing.assert_array_equal(part.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
def test_extreme_codes_do_not_saturate(isa: str) -> None:
    """The largest code times the largest activation, everywhere: the sums of 16 bits would wrap."""
    last = [(BY_NAME[name], (1 << BITS[BY_NAME[name].code]) - 1) for name in AFFINE]
    for form, code in [*last, (BY_NAME["q8_0"], 0)]:
        packed = testing.packed(16, 64, form.code, 32, form.zero)
        ones = np.ones((16, 2), np.float32)
        packed.pack_affine(0, np.full((16, 64), code, np.uint8), ones)
        for sign in (1, -1):
            x = np.full((1, 64), sign, np.float32)
            exact = sign * 64 * (code - form.zero)
            for act in TOP:
                y = testing.linear(isa, testing.selected(isa, packed, act), packed, x, 0, 1)
                assert np.abs(y - exact).max() <= gamma(7) * abs(exact)


@pytest.mark.parametrize("isa", ISAS)
def test_padding_of_inputs_is_nothing(isa: str) -> None:
    """Weights 33..64 of each row don't exist: what stands in their place must not count."""
    case = make_case(BY_NAME["int8_channel"], 16, 33, seed=1)
    x = activations(2, 33, seed=2)
    for act in ACTS:
        y = testing.linear(isa, testing.selected(isa, case.packed, act), case.packed, x, 0, 1)
        assert np.isfinite(y).all()
        want = x.astype(np.float64) @ case.dense.T.astype(np.float64)
        coarse = {"a8": 1 / 100, "a16": 1 / 25000, "abf16": 1 / 100, "a32": gamma(40)}[act]
        size = np.abs(x) @ np.abs(case.dense.T)
        assert (np.abs(y[:, :16] - want) <= coarse * size).all()


def test_kernel_names_follow_the_grammar_and_are_unique() -> None:
    for isa in ISAS:
        names = [row[0] for row in testing.rows(isa)]
        assert len(set(names)) == len(names)
        for name in names:
            head, act, what, own = name.split("_", 3)
            assert head == "linear"
            assert act in ACTS
            coded = [f"{kind}{bits}" for kind in ("w", "lut", "lutw") for bits in CODES]
            assert what in ("f16", "bf16", "f32", "s4", "s8", "b4", "b8", "t2", *coded)
            assert own in (*ISAS, "avx512vbmi")


def test_fast_rows_come_first_and_levels_without_integers_have_no_a8() -> None:
    case = make_case(BY_NAME["fp8"], 16, 64, seed=0)
    for isa in ISAS:
        assert [testing.selected(isa, case.packed, act) for act in TOP] == ["", ""]
        fast = {name: quick for name, _, _, _, quick, _ in testing.rows(isa)}
        if isa != "generic":
            for name in (*AFFINE, "iq4_nl", "nf4", "lut2", "lut3"):
                form = BY_NAME[name]
                packed = make_case(form, 16, 64, seed=0).packed
                acts = [act for act in TOP if serves(form, act)]
                assert all(fast[testing.selected(isa, packed, act)] for act in acts)


def test_a_trellis_is_fast_where_bytes_rotate_in_words() -> None:
    vbmi = "avx512vbmi" in testing.cpu_features().split()
    packed = make_case(BY_NAME["trellis2_g64"], 16, 64, seed=0).packed
    for isa in ISAS:
        fast = {name: quick for name, _, _, _, quick, _ in testing.rows(isa)}
        words = vbmi and isa in ("avx512vnni", "avx512bf16")
        for act in ACTS:
            assert fast[testing.selected(isa, packed, act)] == (words and act in TOP)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", ACTS)
def test_every_window_at_every_place_of_a_run(isa: str, act: str) -> None:
    """Row w has window w at place j of its run j; one input after another is 1, the rest 0."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (256, 32), np.uint64)
    for j in range(32):
        low = np.uint64(2 * j)
        clear = ~(np.uint64(255) << low | np.uint64(255) >> (np.uint64(64) - low) % np.uint64(64))
        if j == 0:
            clear = ~np.uint64(255)
        window = np.arange(256, dtype=np.uint64)
        ring = window << low | (window >> (np.uint64(64) - low) if j else np.uint64(0))
        words[:, j] = words[:, j] & clear | ring
    codes = windows(words.astype("<u8").view(np.uint8))
    np.testing.assert_array_equal(codes[:, np.arange(32) * 33], np.arange(256)[:, None] + [0] * 32)
    levels = np.roll(np.arange(-128, 128), 77).astype(np.int8)
    packed = testing.packed(256, 1024, "trellis", 64)
    packed.set_levels8(levels)
    packed.pack_affine(0, codes, np.ones((256, 16), np.float32))
    np.testing.assert_array_equal(packed.unpack(isa), levels[codes])
    x = np.zeros((32, 1024), np.float32)
    x[np.arange(32), np.arange(32) * 33] = 1
    y = testing.linear(isa, testing.selected(isa, packed, act), packed, x, 0, 16)
    # one product: the activation's scale, its code times it, and the product are rounded
    assert np.abs(y[:, :256] - levels[None]).max() <= gamma(3) * 128


def test_unknown_isa_names_the_list() -> None:
    with pytest.raises(ValueError, match=r"generic, avx2, avx512, .*neon_i8mm"):
        testing.isa_of("sse9")
    assert testing.isa_of("") == ISAS[-1]
