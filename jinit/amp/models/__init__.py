"""The models of every framework at a level: what stands where they stood."""
