"""What models are tuned on here, each with data to train on, problems held out, and a way to tell a right answer."""
