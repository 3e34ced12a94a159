"""Programs compiled: one class for a compiled program, the order they are dispatched in, what their text says."""
