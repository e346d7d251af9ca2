"""Two or more floors together: the real command line and real processes, on tiny models."""
