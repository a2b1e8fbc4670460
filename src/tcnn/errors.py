"""Errors that the user can mend, each told in one line."""


class TCNNError(ValueError):
    """What was expected, what came, and what to do, in one line."""


class RecastError(TCNNError):
    """A network, or a named convolution of it, cannot be recast; the message says why."""


def check_option(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raise ValueError, naming the option, where its value does not hold."""
    if not holds:
        raise ValueError(f"Expected `{name}` to be {wanted}, but got {value!r}.")
