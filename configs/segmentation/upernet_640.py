"""UperNet on ADE20K at 640 px, BEiT's larger setting; the rest as in `upernet`.

ViT-L in two passes of 8 images a GPU-step, as BEiT does on 8 GPUs with one image each.

Source: microsoft/unilm beit/semantic_segmentation/configs/beit/upernet (640 x 640, stride 426).
"""

base = "segmentation/upernet"

variants = [
    ({}, {"data.image_size": 640, "data.crop_size": 640, "test.stride": 426}),
    ({"backbone": "*_large_patch*"}, {"solver.accumulation": 2}),
    (
        {"backbone": "*_huge_patch*"},
        {"data.image_size": 644, "data.crop_size": 644, "test.stride": 429},
    ),
    # Published at 512 px.
    ({}, {"reference.curve": None}),
]

protocol = {
    "settings": {
        "crop": {"key": "data.crop_size", "code": 640},
        "resize": {
            "ours": "(2560, 640) x 0.5-2.0, ratio kept",
            "code": "(2560, 640) x 0.5-2.0, ratio kept",
        },
        "test": {
            "ours": "windows of the crop, stride 426, one scale",
            "code": "windows of the crop, stride 426, one scale",
        },
    },
}

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import config_of  # noqa: E402

globals().update(config_of("segmentation/upernet_640", backbone="vit_base_patch16"))
