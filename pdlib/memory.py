"""What a lack of memory looks like: each library has an error of its own for it."""

import errno
import re

_SAID = (
    (RuntimeError, r"DefaultCPUAllocator|not enough memory|could not create a primitive|std::bad_alloc"),  # torch
    (SystemError, r"error return without exception set"),  # Python without room for a frame
    (ValueError, r"^encoding error [12]$"),  # libwebp in Pillow: VP8_ENC_ERROR_(BITSTREAM_)OUT_OF_MEMORY
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the processor, or of a GPU, has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if any(isinstance(error, kind) and re.search(words, str(error)) for kind, words in _SAID):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
