"""How ranks work on one step together: one small protocol, one file for each backend."""
