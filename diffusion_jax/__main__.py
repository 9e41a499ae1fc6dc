"""`python -m diffusion_jax`, the same as `python -m diffusion_jax.main`."""
from diffusion_jax.main import run

if __name__ == "__main__":
    run()
