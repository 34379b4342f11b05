"""Arithmetic in few passes over memory: what `quantization` says in formulas, forward and backward."""
