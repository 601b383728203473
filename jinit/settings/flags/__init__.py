"""XLA flags: read, checked in a child process, planned and written."""
