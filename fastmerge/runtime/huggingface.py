"""A Hugging Face model for a folder of tasks. transformers is loaded when first needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from ..formats.contents import Contents

OTHERWISE = "build the model yourself and pass it as model="


def build(contents: Contents) -> nn.Module:
    """The model that the folder's configuration describes, or, where tasks have heads, the first such task's."""
    source, folder = contents.source.path, contents.folder.path
    described = next((folder / "tasks" / t for t in contents.folder.tasks if contents.own[t]), source)
    return from_folder(source, described if (described / "config.json").is_file() else source)


def from_folder(source: Path, described: Path | None = None) -> nn.Module:
    """The model of a folder's weights, in their dtype, as the configuration there, or in `described`, has it."""
    transformers = load_transformers(OTHERWISE)
    described = described or source
    if not (described / "config.json").is_file():
        raise InputError(f"{described}: has no config.json that says what model it is; {OTHERWISE}")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # that heads are not in the folder, and come later, is no news
    try:
        config = transformers.AutoConfig.from_pretrained(described, trust_remote_code=False)
        options = {"ignore_mismatched_sizes": True, _dtype_name(transformers): "auto"}
        model: nn.Module = _class(transformers, config, described).from_pretrained(source, config=config, **options)
        return model
    except InputError:
        raise
    except Exception as error:  # whatever transformers makes of a stranger's folder
        raise InputError(f"{described}: transformers cannot build this model ({error}); {OTHERWISE}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)


def load_transformers(otherwise: str) -> Any:
    """The library, or an InputError that says what to do without."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(f"transformers cannot be imported ({error}); install it, or {otherwise}") from None


def _class(transformers: Any, config: Any, described: Path) -> Any:
    """The class that the configuration names, else the one without a head."""
    if not config.architectures:
        return transformers.AutoModel
    found = getattr(transformers, config.architectures[0], None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        version = transformers.__version__
        raise InputError(f"{described}: transformers {version} has no model {config.architectures[0]!r}; {OTHERWISE}")
    return found


def _dtype_name(transformers: Any) -> str:
    major, minor = map(int, transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
