"""PartWorld: the embedded world (renderer, tiny models in the standard formats, and their builder)."""
