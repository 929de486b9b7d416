"""Inference: sessions that turn pictures into slot masks, and object discovery on top of them."""
