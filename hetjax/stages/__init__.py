"""Modules cut into stages with a mesh each, the links between the stages, and the placing of a batch on them.

`cut` makes the `stage`s of a module graph, `links` the tensors between them, which `link_transport` carries. `windows`
says how many microbatches a module takes at once, and `window_cut` cuts them apart. `batch` checks a batch and places
it; `frozen` finds the weights that do not train.
"""
