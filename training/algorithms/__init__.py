"""The maths of each way to learn, as pure functions of tensors."""
