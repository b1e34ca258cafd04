"""What is here: GPUs through NVML, memory, the machine, and the interpreters that run the engines."""
