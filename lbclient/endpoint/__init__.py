"""One instance of a service, and what a client knows of it: load, breaker, health."""
