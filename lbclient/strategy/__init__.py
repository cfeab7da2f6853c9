"""Strategies, one per file. A strategy picks one of the candidates; the endpoint keeps the load."""
