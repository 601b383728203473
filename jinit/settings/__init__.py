"""What a process start can set: one file a concern, each a row of data that ``startup`` reads."""
