"""Training of the embedded model, benchmarks, the notebooks' commands."""
