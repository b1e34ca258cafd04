"""Files to tidy frames, read-only. The only room that knows table and file layouts."""
