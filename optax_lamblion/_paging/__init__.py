"""State in host memory: which of it, in which order, and how it moves."""
