import platform
import sys
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# Lightning and what else only training needs; decord reads videos as the official results did, PyAV otherwise.
TRAIN = [
    "pytorch-lightning>=2.6,<2.7",
    "deepspeed>=0.19,<0.20",
    "wandb>=0.26,<0.32",
    "decord==0.6.0; platform_system == 'Linux' and platform_machine == 'x86_64'",
]
DEMO = ["gradio>=6,<7"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.30,<2"]

# Sampling and parts of training on CPUs, once for each kind of x86 processor: which one is asked when it runs. Without
# a compiler pip goes on, and PyTorch does all of it.
NATIVE = Path("nbp/generator/native")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"]
BUILDS = {
    "float32_avx2": ["-mavx2", "-mfma"],
    "float32_avx512": AVX512,
    "bfloat16_avx512": [*AVX512, "-mavx512bf16", "-DNUMBER=nbp::bfloat16"],
}
SOURCES = ["attention.cpp", "draw.cpp", "loss.cpp", "products.h", "step.cpp", "vectors.h"]
CHECKSUM = zlib.crc32(b"".join((Path(__file__).parent / NATIVE / name).read_bytes() for name in SOURCES))
FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fopenmp", "-fvisibility=hidden", f"-DSOURCE={CHECKSUM}u"]
COMPILED = sys.platform == "linux" and platform.machine() == "x86_64"


class OneByOne(build_ext):
    """Builds of one source for several processors write the same object file, one after the other."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = None


setup(
    name="nbp",
    version="0.1.0",
    description="Next-Block Prediction: semi-autoregressive video generation, complete and tested",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["nbp", "nbp.*"]),
    package_data={"nbp.reporting": ["*.css"], "nbp.generator.native": ["*.cpp", "*.h"]},
    cmdclass={"build_ext": OneByOne},
    ext_modules=[Extension(
        f"nbp.generator.native.{name}", [str(NATIVE / path) for path in SOURCES if path.endswith(".cpp")],
        depends=[str(NATIVE / path) for path in SOURCES],
        extra_compile_args=[*FLAGS, *flags], extra_link_args=["-fopenmp"], optional=True)
        for name, flags in BUILDS.items()] if COMPILED else [],
    # Models, generation, evaluation.
    install_requires=[
        "torch>=2.6,<2.14",
        "einops>=0.8",
        "av>=17,<19",
        "transformers>=5,<6",
        "sentencepiece>=0.2",
        "torchmetrics>=1.9,<2",
        "omegaconf>=2.3,<2.4",
        "pyyaml>=6,<7",
        "safetensors>=0.5",
        "tokenizers>=0.22,<1",
        "huggingface_hub>=1,<3",
        "fsspec>=2023.5",
        "filelock>=3.10",
        "rich>=13",
        "scipy>=1.11",
        "matplotlib>=3.8",
        "pillow>=10",
        "typing_extensions>=4.6",
        "numpy>=1.26,<2.5",
    ],
    extras_require={
        "train": TRAIN,
        "demo": DEMO,
        "docs": DOCS,
        "dev": [*TRAIN, *DEMO, *DOCS, "selenium>=4.20",
                "pytest>=8", "pytest-timeout", "pytest-xdist>=3.6", "packaging", "pre-commit>=4",
                "ruff>=0.14,<0.18", "mypy>=1.18,<3"],
    },
)
