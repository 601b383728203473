"""Statistics of every layer, measured in compiled passes through a traced model."""
