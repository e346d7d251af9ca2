"""What a run leaves to read: a record per step, a line on the screen, a summary at the end."""
