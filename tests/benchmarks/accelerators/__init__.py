"""What XLA's compilers for GPUs and TPUs make of jinit, on a machine that has neither."""
