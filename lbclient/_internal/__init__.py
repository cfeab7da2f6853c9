"""Helpers that every package may use, and users may not."""
