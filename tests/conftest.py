"""What holds for all tests."""

import os
import signal
import tempfile

from hypothesis import HealthCheck, settings

# Whoever starts the tests in the background has SIGINT ignored, and every child would inherit that:
# tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Anchors of logs belong into the user's configuration, those of tests do not.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="aghsan-config-")

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("aghsan", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aghsan")
