"""The parts of a FastConformer encoder of audio (Gulati et al. 2020; Rekesh et al. 2023)."""
