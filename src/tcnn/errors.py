"""Errors that the user can mend, each told in one line."""


class TCNNError(ValueError):
    """What was expected, what came, and what to do, in one line."""


class RecastError(TCNNError):
    """A network, or a named convolution of it, cannot be recast; the message says why."""
