"""What travels with a model besides weights: where it came from, its tokenizer, how it is shown videos and asked."""

from __future__ import annotations

from typing import Any

from etils import epath


class Assets:
    """Companions of a model, loaded when first asked for. Compared by identity, so that a model's graph can be hashed.

    Attributes:
      source: directory the model came from, or None.
      settings: contents of the directory's `vo3.json`.
    """

    def __init__(self, source: epath.Path | None = None, settings: dict[str, Any] | None = None):
        self.source = source
        self.settings = settings or {}
        self._given: dict[str, Any] = {}

    def set(self, name: str, value: Any) -> None:
        """Puts `value` in place of what would be loaded."""
        self._given[name] = value

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the source; None without a source."""
        if "tokenizer" not in self._given and self.source is not None:
            from vo3.models import loading  # it builds on the model

            self._given["tokenizer"] = loading.load_tokenizer(self.source)
        return self._given.get("tokenizer")

    @property
    def dialect(self) -> str:
        """How this model calls its tool: the settings' dialect, or Video-o3's."""
        if "dialect" not in self._given:
            from vo3.chat.dialects import DEFAULT, DIALECTS

            name = self.settings.get("dialect") or DEFAULT
            # By name only: a checkpoint does not decide which module is imported.
            if name not in DIALECTS:
                raise self._wrong("dialect", ValueError(f"{name!r} is none of {list(DIALECTS)}"))
            self._given["dialect"] = name
        return self._given["dialect"]

    @property
    def crop_policy(self) -> Any:
        """How videos are sampled and resized for this model: the settings' policy, or the dialect's evaluation's."""
        if "crop_policy" not in self._given:
            from vo3.chat.dialects import get_dialect
            from vo3.video import CropPolicy

            recipe = get_dialect(self.dialect).recipe
            stored = self.settings.get("crop_policy")
            try:
                policy = (
                    CropPolicy(recipe=recipe) if stored is None else CropPolicy.from_json(stored)
                )
            except (ValueError, TypeError) as error:
                raise self._wrong("crop_policy", error) from error
            self._given["crop_policy"] = policy
        return self._given["crop_policy"]

    @property
    def prompt_pack(self) -> Any:
        """The prompt pack of this model: the settings', or its dialect's. A file name is looked for in the source first."""
        if "prompt_pack" not in self._given:
            from vo3.chat.dialects import get_dialect
            from vo3.chat.prompts import PromptPack

            name = self.settings.get("prompt_pack") or get_dialect(self.dialect).pack
            file = None if self.source is None else self.source / name
            found = file is not None and name.endswith((".yaml", ".yml")) and file.exists()
            try:
                pack = PromptPack.load(file if found else name)
            except ValueError as error:
                raise self._wrong("prompt_pack", error) from error
            self._given["prompt_pack"] = pack
        return self._given["prompt_pack"]

    def _wrong(self, setting: str, error: Exception) -> Exception:
        from vo3.models.safetensors_io import CheckpointError

        return CheckpointError(f"{self.source}/vo3.json, {setting}: {error}")
