"""A run from its first trial to its seal: plans, run folders, captures, notebooks as steps, sweeps."""
