"""The sources of instances: DNS, registries, files, lists, and a user's own resolver."""
