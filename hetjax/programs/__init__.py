"""The programs of a stage: forward, backward, update and end of step.

`stage_functions` has forward and backward as pure functions, `forward_backward` compiles and dispatches them, and
`split_backward` makes two programs of a backward. `update` has the optimizer's programs.
"""
