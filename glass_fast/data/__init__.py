"""Everything on disk: shards, manifests, prompt tables, guarded image decoding, label sets, data sets.

No module here imports torch when it is imported.
"""
