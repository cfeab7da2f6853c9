"""One instance of a service, and its state in one client: load, breaker, health."""
