"""The error that all of this package's own errors are: the user can mend what it tells."""


class TCNNError(ValueError):
    """What was expected, what came, and what to do, in one line."""
