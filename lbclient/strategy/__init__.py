"""Strategies, one per file. A strategy picks one of the candidates."""
