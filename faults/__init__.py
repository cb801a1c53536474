"""Suites that let things die, and hold the log against what clients were told."""
