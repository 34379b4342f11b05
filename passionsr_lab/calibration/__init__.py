"""The path and the stages as data, losses, one loop, its state on disk."""
