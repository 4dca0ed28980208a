"""Data sets in the form that their authors publish: a few records of each, with the example clip as every video.

The annotations are committed in ``tests/data/published/NAME``; their form is the published one, the texts are ours.
Every data set that can lack videos lacks at least one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CLIP = ROOT / "examples" / "turn.mp4"
_ANNOTATIONS = Path(__file__).parent / "data" / "published"
_JPEG = bytes.fromhex("ffd8ffd9")

# The videos that each has, as its authors name them; a name without a suffix is a folder of jpeg frames.
VIDEOS: dict[str, tuple[str, ...]] = {
    "llava-hound": ("train_300k/1066674784", "train_600k/v_abc-Scene-003"),
    "miradata": (
        "clip_video/000000001/000000001000_AAAAAAAAAAA-000000.mp4",
        "clip_video/000000001/000000001001_BBBBBBBBBBB-000002.mp4",
        "clip_video/000000001/000000001002_DDDDDDDDDDD-000239.mp4",
    ),
    "video-instruct": ("videos/v_k_ZXmr8pmrs.mp4",),
    "msvd-qa": ("video/vid1.avi", "video/vid1201.avi", "video/vid1301.avi", "YouTubeClips/fffffffffff_5_14.avi"),
    "msrvtt-qa": ("video/video0.mp4", "video/video6513.mp4", "video/video7010.mp4"),
    "activitynet-qa": ("videos/v_okC18bPTils.mp4", "videos/v_TIEzvhv6xaI.mkv", "videos/v_1QIUV7WYKXg.mp4"),
    "tgif-qa": ("gifs/tumblr_nk172bbdPI1u1lr18o1_250.gif",),
    "nextqa-open": tuple(f"NExTVideo/{path}.mp4" for path in ("0101/2414793083", "1164/4010069381", "0016/2574374895")),
    "nextqa": ("NExTVideo/0101/2414793083.mp4", "NExTVideo/4010069381.mp4", "NExTVideo/0016/2574374895.mp4"),
    "msvd-caption": ("YouTubeClips/aaaaaaaaaaa_0_9.avi", "YouTubeClips/ccccccccccc_2_11.avi", "video/vid1970.avi"),
    "msrvtt-caption": ("TrainValVideo/video0.mp4", "TrainValVideo/video6513.mp4", "TestVideo/video7011.mp4"),
    "huggingface": ("train/circle.mp4", "train/more/square.mp4", "test/circle.mp4"),
}


def lay_out(name: str, folder: Path) -> Path:
    """Makes ``folder`` the root of the data set ``name``, and returns it."""
    shutil.copytree(_ANNOTATIONS / name, folder, dirs_exist_ok=True)
    for video in VIDEOS[name]:
        place = folder / video
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.symlink_to(_CLIP)
        else:
            place.mkdir()
            (place / "c01_0001.jpeg").write_bytes(_JPEG)
    return folder
