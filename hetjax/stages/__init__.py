"""Modules cut into stages with a mesh each, the links between them, and a batch on its way to them."""
