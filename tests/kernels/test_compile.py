"""Every kernel compiles to machine code for sm_80 and sm_90, without a GPU, in another process than the interpreter."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="no triton")

KERNELS = ("q_sample", "p_sample", "group_norm_silu", "ensemble_stats")
SCRIPT = """
import importlib, inspect, itertools, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

DTYPES = {"votes_ptr": "*i32", "keys_ptr": "*i64"}
DTYPES |= dict.fromkeys(("slices_ptr", "members_ptr", "rows_ptr", "steps_ptr"), "*i32")
DTYPES |= dict.fromkeys(("threshold", "low", "high", "eps"), "fp32")
HALF = ("x_ptr", "x_start_ptr", "out_ptr", "output_ptr", "residual_ptr", "y_ptr", "sum_ptr", "h_ptr", "dy_ptr")
HALF += ("dh_ptr",)
FLAGS = ("RESIDUAL", "SHIFT", "SILU", "LEARNED")
# What is launched for the paper's network, at its largest.
SIZES = {"BLOCK": 1024, "BLOCK_P": 64, "BLOCK_C": 128, "BLOCK_B": 1024, "PIXELS_A_BLOCK": 64}
LAUNCHED = {
    "_one_pass_kernel": {"BLOCK_P": 512, "BLOCK_C": 16},
    "_join_moments_kernel": {"BLOCK_C": 8},
    "_ensemble_stats_kernel": {"BLOCK": 1024},
}
WARPS = {"group_norm_silu": 8}

def source(kernel, half, flag):
    signature, constants = {}, {}
    sizes = SIZES | LAUNCHED.get(kernel.fn.__name__, {})
    for name, parameter in inspect.signature(kernel.fn).parameters.items():
        if name.isupper():
            signature[name] = "constexpr"
            constants[name] = flag if name in FLAGS else sizes[name]
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
        options = {"num_warps": WARPS.get(sys.argv[1], 4)}
        target = GPUTarget("cuda", int(sys.argv[2]), 32)
        binary = triton.compile(source(kernel, half, flag), target=target, options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(kernel.fn.__name__, half, len(binary.asm["cubin"]), re.search("STACK:([0-9]+)", usage)[1])
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
    assert {kind for _, kind, *_ in lines} == {"*bf16", "*fp32"} and all(int(size) > 1000 for *_, size, _ in lines)
    assert all(int(stack) <= 64 for *_, stack in lines), "a thread's numbers fit its registers"
