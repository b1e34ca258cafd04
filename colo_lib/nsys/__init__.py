"""Nsight Systems: its command lines, one session over both engines, one capture of a step."""
