"""Integers: a calibrated model folded, packed, and run by an engine that multiplies whole numbers."""
