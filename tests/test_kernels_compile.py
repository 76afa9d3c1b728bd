"""Every kernel compiles to machine code for sm_80 and sm_90, without a GPU, in another process than the interpreter."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no triton")

KERNELS = ("q_sample", "p_sample", "group_norm_silu", "ensemble_stats", "overlap_counts")
SCRIPT = """
import importlib, inspect, itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

DTYPES = {"masks_ptr": "*u8", "references_ptr": "*u8", "counts_ptr": "*i32", "votes_ptr": "*i32", "keys_ptr": "*i64"}
DTYPES |= dict.fromkeys(("slices_ptr", "members_ptr", "rows_ptr", "steps_ptr"), "*i32")
DTYPES |= dict.fromkeys(("threshold", "low", "high", "eps"), "fp32")
HALF = ("x_ptr", "x_start_ptr", "out_ptr", "output_ptr", "residual_ptr", "y_ptr", "sum_ptr", "h_ptr", "dy_ptr")
HALF += ("dh_ptr",)
FLAGS = ("RESIDUAL", "SHIFT", "SILU", "LEARNED")
SIZES = {"BLOCK": 1024, "BLOCK_P": 64, "BLOCK_C": 128, "BLOCK_B": 128, "PIXELS_A_BLOCK": 64}

def source(kernel, half, flag):
    signature, constants = {}, {}
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        if name.isupper():
            signature[name] = "constexpr"
            constants[name] = flag if name in FLAGS else SIZES[name]
        elif name.endswith("_ptr"):
            dtype = DTYPES.get(name, half if name in HALF else "*fp32")
            if kernel.fn.__name__ == "_ensemble_stats_kernel" and name == "members_ptr":
                dtype = half
            signature[name] = dtype
        else:
            signature[name] = DTYPES.get(name, "i32")
    return ASTSource(fn=kernel, signature=signature, constexprs=constants)

module = importlib.import_module("pdlib.kernels." + sys.argv[1])
found = [value for value in vars(module).values() if isinstance(value, JITFunction)]
for kernel in (one for one in found if one.fn.__name__.endswith("_kernel")):
    for half, flag in itertools.product(("*bf16", "*fp32"), (True, False)):
        binary = triton.compile(source(kernel, half, flag), target=GPUTarget("cuda", int(sys.argv[2]), 32))
        print(kernel.fn.__name__, half, len(binary.asm["cubin"]))
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_become_machine_code(name, capability, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT, name, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {kind for _, kind, _ in lines} == {"*bf16", "*fp32"} and all(int(size) > 1000 for *_, size in lines)
