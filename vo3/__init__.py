"""vo3: a video agent that looks again, on JAX and TPU (Video-o3, arXiv 2601.23224)."""

__version__ = "0.1.0"
