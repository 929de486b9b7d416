"""Pictures from slots: sampling from the diffusion decoder, and how close the result is to its source."""
