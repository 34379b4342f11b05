"""What happens inside: ranges, error propagation, sensitivity, cost."""
