"""Rows of a batch: what one has, what samples take of it, which samples share one, and where their media lie.

`sample` is what rows are made of and `row_capacity` what one has. `packing` shares rows out, `shape_choice` chooses how
long they are, and `balanced_rows` spreads media over the rows of an encoder.
"""
