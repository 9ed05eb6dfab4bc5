"""Packaging; pyproject.toml holds the settings of the tools."""

from setuptools import find_packages, setup

setup(
    name="pipeflow",
    version="0.1.0",
    description="Normalizing flows trained by parts, each its own process; training by parts sends nothing backward.",
    packages=find_packages(include=["pipeflow", "pipeflow.*"]),
    package_data={"pipeflow.reporting": ["templates/*.jinja"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "numpy",
        "tqdm",
        "pydantic>=2.10",
        "pyyaml>=6.0.4",  # merges that repeat each other take no memory
        "safetensors",
        "scikit-learn",
        "tensorboard",
        "matplotlib",
        "jinja2",
    ],
    extras_require={
        "test": ["pytest", "pytest-xdist", "ruff", "mypy", "types-tqdm", "types-PyYAML"],
        "peers": ["normflows", "FrEIA", "nflows"],
    },
)
