"""Configuration: typed schema, loader with value origins, shipped presets."""
