"""What a run leaves behind: telemetry, captures, the manifest that closes a folder."""
