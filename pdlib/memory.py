"""What a lack of memory looks like: each library has an error of its own for it."""

import errno

_SAID_BY_TORCH = (  # in a RuntimeError
    "DefaultCPUAllocator",
    "not enough memory",
    "could not create a primitive",
    "std::bad_alloc",
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the processor, or of a GPU, has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID_BY_TORCH):
        return True
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
