"""Arithmetic of one device that layers call whole and `parallel` calls by part; no mesh, no weights of its own."""
