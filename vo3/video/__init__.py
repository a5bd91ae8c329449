"""Videos to frames and patches: which frames are shown, at what size, and how they are read. No model is imported here."""

from vo3.video.clip import Clip
from vo3.video.crop import VideoCrop
from vo3.video.errors import VideoError
from vo3.video.patches import patchify, patchify_image
from vo3.video.policy import CropPolicy
from vo3.video.sampling import ClipPlan, plan_clip

__all__ = [
    "Clip",
    "ClipPlan",
    "CropPolicy",
    "VideoCrop",
    "VideoError",
    "patchify",
    "patchify_image",
    "plan_clip",
]
