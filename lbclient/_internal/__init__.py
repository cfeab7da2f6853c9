"""Helpers for every package of lbclient, not for users."""
