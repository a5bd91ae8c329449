"""Models: `load` one, `run` one sequence, save it.

model = vo3.models.load("Qwen2.5-VL-7B-Instruct/")   # a Hugging Face directory, our own checkpoint, or "clueworld"
logits = vo3.models.run(model, ids, patches=patches, grids=[grid])
model.save_hf("out/")
"""

from vo3.models.loading import NAMES, load, save_orbax
from vo3.models.running import run
from vo3.models.safetensors_io import CheckpointError

__all__ = ["NAMES", "CheckpointError", "load", "run", "save_orbax"]
