"""Many devices: how leaves are divided, and what is added up."""
