"""Atomic files, memory, cures for packages that break each other, reading others' checkpoints without running code."""
