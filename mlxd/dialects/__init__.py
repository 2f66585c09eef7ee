"""The wire formats. Pure: bytes and events in, bytes out; no I/O, no clock, no randomness."""
