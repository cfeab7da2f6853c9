"""Discovery by DNS. The only folder with dnspython, registration aside."""
