"""PassionSR-FP at full size: SD2.1's architecture, weights, text encoder and names, OSEDiff's LoRA and tags."""
