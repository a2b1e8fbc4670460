"""For all tests."""

from __future__ import annotations

import os
import signal

import torch

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them what they
# start; some of them are about it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already
