"""The wording of every stage's question to a model: one YAML file a stage, with its version and the schema of the reply.

Templates hold fields written `{name}`; any other brace stands for itself. Whatever comes from outside (captions, questions,
options, think texts) goes in fenced: as a JSON string between `<data>` and `</data>`, with its angle brackets escaped, so that
no text can close the fence, and the system prompt says that fenced text is material and never an instruction.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from data_prep.keys import content_key

_FIELD = re.compile(r"\{([a-z_]+)\}")
_FOLDER = epath.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One stage's prompt.

    Attributes:
      name: of the file.
      version: raised when the meaning changes; part of every reply's key through `hash`.
      system, user: templates.
      reply: JSON schema of the reply.
      hash: content key of all of it.
    """

    name: str
    version: int
    system: str
    user: str
    reply: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Changes with any word of the prompt or of the reply's schema."""
        return content_key(self.name, self.version, self.system, self.user, self.reply)

    def fill(self, **fields: str) -> str:
        """The user's text. A field's value is never searched for fields.

        Raises:
          ValueError: a field that the template has and `fields` has not, or the other way round.
        """
        wanted = set(_FIELD.findall(self.user))
        if wanted != set(fields):
            raise ValueError(
                f"prompt {self.name} has the fields {sorted(wanted)}, given {sorted(fields)}"
            )
        return _FIELD.sub(lambda match: fields[match[1]], self.user)


@functools.cache
def load(name: str, folder: str = "") -> Prompt:
    """Reads a prompt by name from this package, or from another folder of the same layout.

    Raises:
      ValueError: no such prompt, or a file without the five keys.
    """
    root = epath.Path(folder) if folder else _FOLDER
    path = root / f"{name}.yaml"
    if not path.exists():
        raise ValueError(
            f"no prompt {path}; there are {sorted(p.stem for p in root.glob('*.yaml'))}"
        )
    data = yaml.safe_load(path.read_text())
    keys = {"version", "system", "user", "reply"}
    if not isinstance(data, dict) or set(data) != keys:
        raise ValueError(f"{path}: a prompt has exactly the keys {sorted(keys)}")
    return Prompt(name=name, **data)


def fenced(text: str) -> str:
    """`text` as material: a JSON string between data marks that nothing in it can close."""
    body = json.dumps(text, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"<data>{body}</data>"
