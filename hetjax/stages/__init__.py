"""Modules cut into stages with a mesh each, the links between the stages, and the placing of a batch on them."""
