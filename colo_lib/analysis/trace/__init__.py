"""What a capture shows: interval maths over the kernels of one device in one window."""
