"""From the config to what the run needs: typed settings, a client, a context. What does not fit is refused with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from data_prep.admission import AdmissionSettings
from data_prep.cache import open_cache
from data_prep.models.base import Client
from data_prep.models.calling import Caller, CallLimits, Price
from data_prep.models.frames import FrameSettings
from data_prep.models.oracle import OracleClient, OracleSettings
from data_prep.schema import Material, Triplet
from data_prep.settings import StageSettings
from data_prep.stages.base import Context
from vo3.chat import PromptPack
from vo3.video import CropPolicy

BACKENDS = ("openai", "google-genai", "clueworld-oracle")


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the remedy."""


def struct(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A settings struct of a config section, nested sections too.

    Raises:
      ConfigError: an unknown key (the nearest is named), or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    plain = {}
    for name, value in dict(values).items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(fields)}"
            raise ConfigError(f"config.{where} has no key {name!r}{hint}")
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            value = struct(type(default), value, f"{where}.{name}")
        elif isinstance(value, list | tuple):
            value = tuple(value)
        elif isinstance(value, ml_collections.ConfigDict):
            value = value.to_dict()
        plain[name] = value
    return kind(**plain)


def caller(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Caller:
    """The caller of the configured backend, with the run's reply cache. Belongs to the event loop that first uses it."""
    limits = struct(CallLimits, config.limits, "limits")
    price = struct(Price, config.model.price, "model.price")
    return Caller(
        client(config, connections=limits.concurrency),
        open_cache(workdir, config.cache),
        limits=limits,
        price=price,
    )


def client(config: ml_collections.ConfigDict, *, connections: int) -> Client:
    """The configured backend.

    Raises:
      ConfigError: an unknown backend, or a model without a name.
      ModelError: no API key.
    """
    model = config.model
    if model.backend not in BACKENDS:
        raise ConfigError(f"config.model.backend is {model.backend!r}; one of {BACKENDS}")
    if model.backend == "clueworld-oracle":
        if config.source.name not in ("clueworld", "triplets"):
            raise ConfigError(
                f"the oracle knows the synthetic world only, not config.source.name {config.source.name!r}"
            )
        return OracleClient(struct(OracleSettings, config.oracle, "oracle"))
    if not model.name:
        raise ConfigError("config.model.name is empty; give the model as the endpoint names it")
    if model.backend == "openai":
        from data_prep.models.openai import OpenAIClient

        return OpenAIClient(
            model=model.name,
            base_url=model.base_url or "https://api.openai.com/v1",
            api_key_env=model.api_key_env,
            json_mode=model.json_mode,
            frame_settings=struct(FrameSettings, model.frames, "model.frames"),
            connections=connections,
        )
    from data_prep.models.gemini import GeminiClient

    return GeminiClient(
        model=model.name,
        api_key_env=model.api_key_env,
        base_url=model.base_url,
        fps=model.fps,
        json_mode=model.json_mode,
        uploads=config.under_way,
    )


def context(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Context:
    """What the stages share."""
    return Context(
        caller=caller(config, workdir),
        settings=struct(StageSettings, config.stages, "stages"),
        pack=PromptPack.load(config.prompt_pack),
        policy=crop_policy(config.crop),
        root=config.videos,
        prompts=config.prompts,
    )


def crop_policy(name: str) -> CropPolicy:
    """A recipe's geometry, or the embedded model's."""
    if name == "clueworld":
        from vo3.clueworld.views import crop_policy as embedded

        return embedded()
    return CropPolicy(recipe=name)


def exchange(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """The folder through which triplets and records pass between this machine and Beam's workers.

    Raises:
      ConfigError: it is on an object store, for workers elsewhere, and the reply cache or the videos are not.
    """
    folder = config.beam.folder
    if "://" not in folder:
        return epath.Path(folder) if folder else epath.Path(workdir) / "beam"
    for key, value in (("cache", config.cache), ("videos", config.videos)):
        oracle = key == "videos" and config.model.backend == "clueworld-oracle"
        if "://" not in value and not oracle:
            raise ConfigError(
                f"config.beam.folder is {folder!r}, for workers on other machines, which cannot see config.{key}={value!r}; "
                "give a folder on an object store"
            )
    return epath.Path(folder)


def admission(config: ml_collections.ConfigDict) -> AdmissionSettings:
    """What is turned away."""
    return struct(AdmissionSettings, config.admission, "admission")


def read_source(config: ml_collections.ConfigDict) -> Iterator[Triplet | Material]:
    """The configured source's triplets, or material for stage 0.

    Raises:
      ConfigError: an unknown source.
      ValueError: a file that does not read as the source's format.
    """
    source = config.source
    if source.name == "clueworld":
        from data_prep.sources import clueworld

        return clueworld.triplets(
            limit=source.limit or 1000,
            first_seed=source.first_seed,
            kinds=source.kinds,
            longest=source.longest,
            wrong_answers=source.wrong_answers,
            fault_seed=config.oracle.seed,
        )
    from data_prep.sources import files

    readers: dict[str, Callable[..., Iterator[Triplet | Material]]] = files.READERS
    if source.name not in readers:
        near = difflib.get_close_matches(source.name, readers, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        names = ["clueworld", *sorted(readers)]
        raise ConfigError(f"config.source.name is {source.name!r}{hint} There are {names}")
    if not source.path:
        raise ConfigError(f"config.source.path is empty; give the file of {source.name}")
    rows = readers[source.name](source.path, split=source.split)
    return _first(rows, source.limit)


def _first(rows: Iterator, limit: int) -> Iterator:
    for number, row in enumerate(rows):
        if limit and number >= limit:
            return
        yield row
