"""Arrays drawn number by number, whatever their shapes and shardings."""
