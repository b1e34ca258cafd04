"""Frame in, frame out: no files, no drawing."""
