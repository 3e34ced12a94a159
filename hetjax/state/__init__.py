"""The training state: its first value, and whole modules joined from their stages.

`train_state` has the state by stage, `initialize` makes the first one, from a seed or a `weight_source`. `module_state`
joins and splits the state of a whole module, whose arrays are `whole_array`s.
"""
