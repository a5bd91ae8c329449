"""Makes tool trajectories of (video, question, answer) triplets.

python -m data_prep.synthesize --config=configs/data_prep.py --workdir=out/synthesis
python -m data_prep.synthesize --config=configs/data_prep.py:openai --workdir=DIR --config.model.name=MODEL \
    --config.model.base_url=http://localhost:8000/v1 --config.source.name=cg-bench --config.source.path=FILE --config.videos=ROOT
python -m data_prep.synthesize --config=configs/data_prep.py:gemini --workdir=DIR --config.model.name=MODEL ... --dry_run

The first needs no endpoint: an oracle answers from the synthetic world's truth.
"""

import ml_collections

_MODELS = {
    "clueworld": {"backend": "clueworld-oracle", "name": "clueworld-oracle", "api_key_env": ""},
    "openai": {"backend": "openai", "name": "", "api_key_env": "OPENAI_API_KEY"},
    "gemini": {"backend": "google-genai", "name": "", "api_key_env": "GEMINI_API_KEY"},
}


def get_config(model: str = "clueworld") -> ml_collections.ConfigDict:
    """`clueworld`: the oracle on the synthetic world; `openai`: any OpenAI-compatible endpoint; `gemini`: google-genai."""
    if model not in _MODELS:
        raise ValueError(f"unknown model {model!r}; one of {list(_MODELS)}")
    oracle = model == "clueworld"
    return ml_collections.ConfigDict(
        {
            "source": {
                # clueworld, triplets, material, charades-sta, next-gqa, cg-bench, llava-video, longvideo-reason, longvt
                "name": "clueworld" if oracle else "triplets",
                "path": "",  # the source's file, or folder
                "split": "",
                "limit": 200 if oracle else 0,  # 0: all
                "first_seed": 70_000,
                "kinds": ("digit", "overview", "pair", "grounding"),
                "longest": 0.0,  # seconds of a world; 0: any
                "wrong_answers": 0.0,
            },
            "videos": "",  # root folder; paths may not leave it
            "admission": {"similarity": 0.9, "across_videos": False, "benchmarks": ()},
            "model": {
                **_MODELS[model],
                "base_url": "",
                "json_mode": "schema",  # or object, none
                "fps": 1.0,  # of an uploaded video
                "frames": {"whole": 128, "clip": 48, "side": 512, "quality": 80},
                "price": {"prompt": 0.0, "reply": 0.0},  # for a million tokens
            },
            "limits": {
                "concurrency": 64,
                "requests_per_minute": 0.0,
                "tokens_per_minute": 0.0,
                "timeout": 120.0,
                "attempts": 6,
                "first_wait": 1.0,
                "longest_wait": 60.0,
                "repairs": 1,
            },
            "oracle": {
                "seed": 0,
                "error_rate": 0.0,
                "guess": 0.2,
                "mess": 0.0,
                "delay": 0.0,
                "faults": {"window": 0.0, "times": 0.0, "audio": 0.0, "circular": 0.0, "slip": 0.0},
            },
            "stages": {
                "material": {"questions": 4, "max_clue_share": 0.25},
                "localise": {"gap": 3.0, "least": 2.0, "most": 6},
                "verify": {
                    "votes": 3,
                    "needed": 2,
                    "overview_votes": 3,
                    "overview_needed": 3,
                    "temperature": 0.7,
                    "max_clue_share": 0.5,
                    "iou": 0.5,
                    "judge_open": True,
                },
                "generate": {
                    "max_calls": 6,
                    "inside": 0.5,
                    "tokens_low": 64,
                    "tokens_medium": 160,
                    "tokens_high": 320,
                    "max_tokens": 4096,
                },
                "check": {"slack": 2.0, "max_think": 4000, "judge": True},
            },
            "prompts": "",  # folder of prompt files; empty: the package's own
            "prompt_pack": "clueworld" if oracle else "default",
            "crop": "clueworld" if oracle else "sft",  # a recipe of CropPolicy, or clueworld
            "cache": "",  # WORKDIR/replies.sqlite; *.sqlite, or a folder (gs:// too) shared by many machines
            "engine": "local",  # or beam
            "under_way": 128,  # records at once
            # Flags of the runner; where triplets and records pass between here and the workers: WORKDIR/beam, or gs:// on a cluster.
            "beam": {"args": (), "batch": 32, "folder": ""},
        }
    )
