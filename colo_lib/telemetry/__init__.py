"""What devices and processes did while something ran, sampled by a process of its own."""
