"""What a calibration returns: the trees, their file, and the report."""
