"""Models: loading, running one sequence, saving."""
