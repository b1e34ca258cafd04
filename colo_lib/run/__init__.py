"""The conductor: order of trials, run folders, notebooks executed and judged by their own records."""
