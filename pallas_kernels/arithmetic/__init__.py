"""What optimizers compute, on values and blocks of them: no memory, no device."""
