"""Connections to the instances of a service: HTTP/1.1 of our own, HTTP/2 over h2."""
