"""Errors that the user can mend, each told in one line."""

import re


class TCNNError(ValueError):
    """What was expected, what came, and what to do, in one line."""


class RecastError(TCNNError):
    """A network, or a named convolution of it, cannot be recast; the message says why."""


def check_option(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raise ValueError, naming the option, where its value does not hold."""
    if not holds:
        raise ValueError(f"Expected `{name}` to be {wanted}, but got {value!r}.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or PyTorch ran out of memory, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and re.search(r"allocate memory|out of mem", str(error)) is not None
    )
