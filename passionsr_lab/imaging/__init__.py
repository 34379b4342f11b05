"""Pictures: in and out, degraded, paired, cut into tiles, their colours fixed. Knows nothing of networks."""
