"""Where instances come from: DNS, files, lists, and a user's own resolver."""
