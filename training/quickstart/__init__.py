"""The first run: trains a small model on this machine in minutes, and shows what it learned."""
