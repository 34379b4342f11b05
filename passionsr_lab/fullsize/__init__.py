"""The full size: SD2.1's architecture, OSEDiff's weights, where they are, and what this machine lacks."""
