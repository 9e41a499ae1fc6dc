"""diffusion_jax: every step of the text-to-image lineage in JAX."""

__version__ = "0.1.0"
