"""Files of a run, a sweep or an Nsight Systems export to checked records and frames; nothing is computed here."""
