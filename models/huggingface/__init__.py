"""Weights and configs of Hugging Face checkpoints, in and out, tensor by tensor."""
