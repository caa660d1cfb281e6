"""How leaves step."""
