"""Built-in example data, all of it simulated and labelled so."""
