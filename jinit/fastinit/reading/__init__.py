"""What each leaf of an initialization is, read from its program."""
