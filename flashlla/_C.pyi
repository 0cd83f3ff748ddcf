"""What csrc/bindings/module.cpp defines. Pointers are ints; ops/cpu.py numbers dtypes and solvers."""

from collections.abc import Sequence

_Operand = tuple[int, Sequence[int], int]  # data, strides of batch, rows and heads, dtype
_RowOperand = tuple[int, Sequence[int]]

class Problem:
    def __init__(
        self,
        q: _Operand,
        k: _Operand,
        v: _Operand,
        probe: _Operand | None,
        ridge: _RowOperand | None,
        gate: _RowOperand,
        sizes: Sequence[int],
        sequences: int,
        n_sequences: int,
        scale: float,
        causal: bool,
        window: int,
        solver: int,
        rtol: float,
        max_iters: int,
        stats: bool,
        block_table: tuple[int, int, int] | None,
        /,
    ) -> None: ...

def available_instruction_sets() -> list[str]: ...
def instruction_set(name: str, /) -> str: ...

# pointers: o, lse, kbar, g, residual, iterations; then rows of q, threads
def forward(isa: str, p: Problem, /, *pointers: int) -> None: ...
def decode(isa: str, p: Problem, /, *pointers: int) -> None: ...

# pointers: kbar, g, dq, dk, dv, dprobe, dridge, dgate; then rows of q, rows of k, threads
def backward(isa: str, p: Problem, d_o: _Operand, /, *pointers: int) -> None: ...
