"""How slow this machine is known to be: time limits of tests are multiplied by it. ``make test-vm`` says so of an emulated one.

Only limits: nothing waits longer for it where all is well.
"""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("FLANPY_TEST_SLOWNESS", "1"))
"""1: a usual machine."""
