"""Sources that push changes: registries that send them to a client as they happen."""
