"""Prompt table -> images with label masks, by denoising with attention capture."""
