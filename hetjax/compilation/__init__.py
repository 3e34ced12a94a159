"""Compilation: one class for a compiled program, the order of dispatch, what a program's text says, and targets."""
