"""Connections to the instances of a service: lbclient's own HTTP/1.1, and HTTP/2 with h2."""
