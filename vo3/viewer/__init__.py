"""Pages for people: one trajectory as one self-contained HTML file, and an index over many."""

from vo3.viewer.page import render

__all__ = ["render"]
