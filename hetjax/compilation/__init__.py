"""Compilation: one class for a compiled program, the order of dispatch, and reading what a program's text says."""
