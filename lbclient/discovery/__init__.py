"""The sources of instances: DNS, files, lists, and a user's own resolver."""
