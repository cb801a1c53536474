"""What holds for all tests."""

import signal

# Whoever starts the tests in the background has SIGINT ignored, and every child would inherit that:
# tests that press Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
