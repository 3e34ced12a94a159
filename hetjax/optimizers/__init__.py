"""optax transforms over the weights of modules that are cut into stages: how they see them, and optimizers by name.

`layerwise` has them see one layer at a time and `coupling` finds those that a cut would change; `named`, `schedules`,
`groups` and `average` make the optimizer of a run from its settings.
"""
