"""PassionSR's released files and the arithmetic of its code."""
