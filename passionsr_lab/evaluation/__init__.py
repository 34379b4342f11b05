"""How good it is: metrics, protocols, grids of runs, tables."""
