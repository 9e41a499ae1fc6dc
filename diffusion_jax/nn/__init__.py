"""Layers that no single model owns."""
