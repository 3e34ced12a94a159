"""The parts of a FastConformer encoder of sound (Gulati et al. 2020; Rekesh et al. 2023)."""
