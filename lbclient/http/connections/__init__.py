"""Connections to the instances of a service: HTTP/1.1, implemented here, and HTTP/2 with h2."""
