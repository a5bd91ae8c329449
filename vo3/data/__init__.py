"""Training data: rows, checks, packing and loading."""
