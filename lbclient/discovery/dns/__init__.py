"""Discovery through DNS. Besides `registration/`, the only folder that uses dnspython."""
