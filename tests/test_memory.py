"""A lack of memory is told from other errors, whoever meets it."""

import errno

import numpy as np
import pytest
import torch

from pdlib.memory import is_lack_of_memory

MUCH = 2**58  # bytes that no machine has


@pytest.mark.fault("out of memory")
@pytest.mark.parametrize("take", [lambda: torch.empty(MUCH, dtype=torch.uint8), lambda: np.empty(MUCH, np.uint8)])
def test_more_than_there_is(take):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        take()
    assert is_lack_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (SystemError("error return without exception set"), True),
        (ValueError("encoding error 1"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (SystemError("bad argument to internal function"), False),
        (ValueError("encoding error 10"), False),
        (ValueError("not enough memory of the case"), False),
    ],
)
def test_what_an_error_says(error, told):
    assert is_lack_of_memory(error) == told
