"""The extension module (native/bind/module.cc)."""

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]

class Code(enum.Enum):
    TWO = 0
    THREE = 1
    NIBBLE = 2
    FIVE = 3
    SIX = 4
    BYTE = 5
    F16 = 6
    BF16 = 7
    F32 = 8
    SPARSE_NIBBLE = 9
    SPARSE_BYTE = 10
    TRELLIS = 11
    BLOCK_NIBBLE = 12
    BLOCK_BYTE = 13

def code_for(bits: int) -> Code: ...

class Scaling(enum.Enum):
    F16 = 0
    F32 = 1
    SUB4 = 2
    SUB6 = 3
    SUB8 = 4

class Act(enum.Enum):
    A8 = 0
    BF16 = 1
    F32 = 2
    A16 = 3
    A8A16 = 4

class ActScale(enum.Enum):
    GROUP = 0
    TOKEN = 1
    TENSOR = 2
    STATIC = 3
    OUTLIERS = 4

class MlpAct(enum.Enum):
    SILU = 0
    GELU_TANH = 1

class KvFormat(enum.Enum):
    BF16 = 0
    F32 = 1
    F16 = 2
    INT8 = 3
    INT4 = 4
    KIVI2 = 5
    KIVI4 = 6
    E4M3 = 7
    E5M2 = 8

class Arena:
    def __init__(self) -> None: ...
    @property
    def allocated(self) -> int: ...

class PackPlan:
    n: int
    k: int
    code: Code
    group: int
    zero: int
    scaling: Scaling
    has_offset: bool
    has_zero: bool
    super_group: int
    sub_bias: int
    levels8: list[int]
    levels: list[float]
    def __init__(self) -> None: ...
    @staticmethod
    def gguf(type: str, n: int, k: int) -> PackPlan: ...
    def set_levels16(self, levels: list[int], step: float) -> None: ...
    def set_blocks(self, mask: U8) -> None: ...
    @property
    def packed_bytes(self) -> int: ...

class Weight:
    def __init__(self, arena: Arena, plan: PackPlan) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    def pack_gguf(self, type: str, data: U8, row0: int) -> None: ...
    def pack_floats(self, type: str, data: U8, row0: int) -> None: ...
    def pack_rounded(self, type: str, data: U8, row0: int, bits: int, convention: str) -> None: ...
    def pack_affine(
        self,
        codes: U8,
        scales: F32,
        row0: int,
        offsets: F32 | None = None,
        zeros: U8 | None = None,
        subs: U8 | None = None,
        sub_offsets: U8 | None = None,
    ) -> None: ...
    def unpack(self, row0: int, out: F32) -> None: ...

class LayerDesc:
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    scale: float
    softcap: float
    window: int
    rope: int
    kv_group: int
    recent_group: int
    activation: MlpAct
    def __init__(self) -> None: ...
    def set_vector(self, part: str, values: F32) -> None: ...
    def set_weight(
        self, part: str, weight: Weight, act: Act, scale: ActScale = ..., peak: float = 0
    ) -> None: ...

class ModelDesc:
    hidden: int
    vocab: int
    norm_eps: float
    embed_scale: float
    softcap: float
    embed: Weight
    def __init__(self) -> None: ...
    def set_head(
        self, weight: Weight, act: Act, scale: ActScale = ..., peak: float = 0
    ) -> None: ...
    def set_embed_up(
        self, weight: Weight, act: Act, scale: ActScale = ..., peak: float = 0
    ) -> None: ...
    def set_head_down(
        self, weight: Weight, act: Act, scale: ActScale = ..., peak: float = 0
    ) -> None: ...
    def set_final_norm(self, values: F32) -> None: ...
    def add_rope(self, cos: F32, sin: F32) -> None: ...
    def add_layer(self, layer: LayerDesc) -> None: ...

class RuntimeDesc:
    max_tokens: int
    max_seqs: int
    context: int
    threads: int
    usable_cpus: int
    block_size: int
    kv_format: KvFormat
    kv_blocks: list[int]
    wide_ratio: float
    isa: str
    def __init__(self) -> None: ...

class Executor:
    def __init__(self, model: ModelDesc, runtime: RuntimeDesc) -> None: ...
    def bind(self, batch: object, result: object) -> None: ...
    def step(self, n_seqs: int, logits: F32 | None, hidden: F32 | None, times: int = 1) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def kv_lost(self) -> int: ...
    def cancel(self) -> None: ...
    def clear_cancel(self) -> None: ...
    def copy_block(self, group: int, source: int, destination: int) -> None: ...
    def read_blocks(self, group: int, blocks: I32, out: U8) -> None: ...
    def write_blocks(self, group: int, blocks: I32, data: U8) -> None: ...
    def reset_slot(self, slot: int, prompt: I32, output: I32) -> None: ...
    def kernels(self) -> list[tuple[int, str, str, bool, int]]: ...
    def stage_seconds(self) -> list[list[float]]: ...
    def rows_seen(self) -> list[tuple[int, int]]: ...
    def read_weights(self, passes: int) -> float: ...
    @property
    def isa(self) -> str: ...

STAGES: list[str]

def gram_supported() -> bool: ...
def gram_words(width: int) -> int: ...
def gram_tasks(width: int) -> int: ...
def gram_pack(x: F32, at: int, pairs: npt.NDArray[np.uint32]) -> None: ...
def gram_add(pairs: npt.NDArray[np.uint32], n: int, task: int, h: F32) -> None: ...
def trellis_encode(
    x: F32,
    u: F32,
    levels: F32,
    tries: int,
    words: npt.NDArray[np.uint64],
) -> None: ...
def resolve_isa(isa: str) -> str: ...

class MachineProbe:
    def __init__(self, threads: int, usable_cpus: int, isa: str = "") -> None: ...
    def read(self, bytes: int, seconds: float) -> float: ...
    def peak(self, kind: str, seconds: float) -> float: ...
    def instruction(self, kind: str) -> str: ...
    def barrier(self, seconds: float) -> float: ...
    def clock(self, seconds: float) -> float: ...

testing: Any
