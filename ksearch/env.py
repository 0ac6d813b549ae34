"""Every environment variable, typed, in one place; nothing else reads the environment.

An explicit argument beats the variable, the variable beats the default. Values are read at each
call, never on the launch path.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def database_path() -> Path:
    """KSEARCH_DB: the database of winners and trials (default: the user's data directory)."""
    value = os.environ.get("KSEARCH_DB")
    return Path(value).expanduser() if value else Path(platformdirs.user_data_dir("ksearch")) / "ksearch.db"


def bundle_path() -> Path | None:
    """KSEARCH_BUNDLE: the bundle that kernels are loaded from, instead of the database."""
    value = os.environ.get("KSEARCH_BUNDLE")
    return Path(value).expanduser() if value else None


def cache_dir() -> Path:
    """KSEARCH_CACHE_DIR: sources, binaries and logs of candidates; safe to delete."""
    value = os.environ.get("KSEARCH_CACHE_DIR")
    return Path(value).expanduser() if value else Path(platformdirs.user_cache_dir("ksearch"))


def template_dir() -> Path | None:
    """KSEARCH_TEMPLATES: a folder searched for templates before the ones that ship with ksearch."""
    value = os.environ.get("KSEARCH_TEMPLATES")
    return Path(value).expanduser() if value else None


def launcher() -> Path | None:
    """KSEARCH_LAUNCHER: the compiled launcher (default: the one in the cache, if it was built)."""
    value = os.environ.get("KSEARCH_LAUNCHER")
    return Path(value).expanduser() if value else None


def require() -> bool:
    """KSEARCH_REQUIRE: where nothing was tuned for a call, an error instead of PyTorch."""
    return os.environ.get("KSEARCH_REQUIRE", "") not in ("", "0")


def disable() -> bool:
    """KSEARCH_DISABLE: PyTorch runs everywhere, and no database is looked into."""
    return os.environ.get("KSEARCH_DISABLE", "") not in ("", "0")


def require_gpu() -> bool:
    """KSEARCH_REQUIRE_GPU: the tests fail, rather than skip, where no GPU is found."""
    return os.environ.get("KSEARCH_REQUIRE_GPU", "") not in ("", "0")


def gpu_name(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES calls the GPU that this process counts as `index`; the index without it."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)


def cxx() -> str | None:
    """KSEARCH_CXX: the C++ compiler of the CPU backend (default: c++, g++ or clang++ on PATH)."""
    return os.environ.get("KSEARCH_CXX") or None
