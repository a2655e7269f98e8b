"""Pure rules: no I/O, no clock, no randomness (all of them are passed in), no logging."""
