"""Mask R-CNN on COCO as in ViTDet: another protocol than `li.py`, with cells of its own.

Source: arXiv:2203.16527; detectron2 projects/ViTDet/configs/COCO (100 epochs for ViT-B and L, 75
for H). Cascade R-CNN is `model.cascade=True`.

detectron2 reads this file as a LazyConfig; `mae-bench` reads only the literals.
"""

recipe = {
    "data": {
        "image_size": 1024,
        "min_scale": 0.1,
        "max_scale": 2.0,
        "flip": 0.5,
        # The model pads, with the mean colour.
        "pad_value": None,
        "num_workers": 8,
        # Unreadable training images that are reported and left out.
        "max_broken": 10,
    },
    "model": {
        "strides": [4, 8, 16, 32],
        # All levels from the last block, without an FPN.
        "pyramid": "last",
        "taps": None,
        "pyramid_norm": "LN",
        "patch_size": None,
        "window_size": 14,
        "global_blocks": None,
        "positions": None,
        "relative_positions": "decomposed",
        "layer_scale": None,
        "qkv_bias": None,
        "initialisation": None,
        "drop_path": 0.1,
        "fpn_channels": 256,
        "fpn_norm": "LN",
        "top_level": True,
        "anchor_sizes": [32, 64, 128, 256, 512],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "rpn_convs": 2,
        "rpn_norm": "",
        "rpn_samples": 256,
        "pre_nms": 2000,
        "post_nms": 1000,
        "roi_samples": 512,
        "cascade": False,
        "roi_canonical_size": 448,
        "box_resolution": 7,
        "box_convs": 4,
        "box_fc": 1024,
        "mask_resolution": 14,
        "mask_convs": 4,
        "head_norm": "LN",
    },
    "solver": {
        "epochs": 100,
        "iterations": None,
        "batch_size": 64,
        "accumulation": 1,
        "lr": 1e-4,
        "schedule": "step",
        "warmup_epochs": None,
        "warmup_iterations": 250,
        "weight_decay": 0.1,
        "layer_decay": 0.7,
        "decay_rule": "vitdet",
        "amp": "float16",
        "fp16_compression": True,
        "activation_checkpointing": False,
        "save_every": 1000,
    },
    "test": {
        "pre_nms": 1000,
        "post_nms": 1000,
        "score_threshold": 0.05,
        "nms": 0.5,
        "detections_per_image": 100,
        "max_images": None,
        # Score the validation images every so many steps, too; None for at the end only.
        "validate_every": None,
    },
}

variants = [
    ({"backbone": "*large*"}, {"model.drop_path": 0.4, "solver.layer_decay": 0.8}),
    (
        {"backbone": "*huge*"},
        {"model.drop_path": 0.5, "solver.layer_decay": 0.9, "solver.epochs": 75},
    ),
    ({"backbone": "*_patch14"}, {"model.patch_size": 16}),
]

smoke = {
    "solver.iterations": 2,
    "solver.warmup_iterations": 1,
    "solver.batch_size": 2,
    "solver.amp": None,
    "data.image_size": 256,
    "model.roi_samples": 16,
    "test.detections_per_image": 10,
    "test.max_images": 4,
}

protocol = {
    "paper": "arXiv:2203.16527 Sec. 4, A.2",
    "code": "detectron2 projects/ViTDet/configs/COCO/mask_rcnn_vitdet_{b,l,h}_*ep.py",
    "lr_trials": {"ours": 1},
    "settings": {
        "image size": {"key": "data.image_size", "paper": 1024, "code": 1024},
        "large-scale jitter, from": {"key": "data.min_scale", "paper": 0.1, "code": 0.1},
        "large-scale jitter, to": {"key": "data.max_scale", "paper": 2.0, "code": 2.0},
        "batch": {"key": "solver.batch_size", "paper": 64, "code": 64},
        "epochs": {
            "key": "solver.epochs",
            "paper": {"*huge*": 75, "*": 100},
            "code": {"*huge*": 75, "*": 100},
        },
        "images per epoch": {
            "ours": "117,266: those with annotations",
            "code": "118,000: 184,375 iterations for 100 epochs",
        },
        "optimizer": {
            "ours": "AdamW 0.9 / 0.999",
            "paper": "AdamW 0.9 / 0.999",
            "code": "AdamW 0.9 / 0.999",
        },
        "learning rate": {"key": "solver.lr", "paper": 1e-4, "code": 1e-4},
        "schedule": {
            "ours": "a tenth after 8/9 and 26/27 of the training",
            "code": "a tenth after 8/9 and 26/27 of the training",
        },
        "warm-up, iterations": {"key": "solver.warmup_iterations", "paper": 250, "code": 250},
        "weight decay": {"key": "solver.weight_decay", "paper": 0.1, "code": 0.1},
        "no weight decay": {
            "ours": "norms, absolute positions",
            "code": "norms, absolute positions",
        },
        "layer-wise lr decay": {
            "key": "solver.layer_decay",
            "paper": {"*large*": 0.8, "*huge*": 0.9, "*": 0.7},
            "code": {"*large*": 0.8, "*huge*": 0.9, "*": 0.7},
        },
        "drop path": {
            "key": "model.drop_path",
            "paper": {"*large*": 0.4, "*huge*": 0.5, "*": 0.1},
            "code": {"*large*": 0.4, "*huge*": 0.5, "*": 0.1},
        },
        "precision": {"key": "solver.amp", "code": "float16"},
        "fp16 gradient compression": {"key": "solver.fp16_compression", "code": True},
        "attention": {
            "ours": "14x14 windows, global after each quarter",
            "paper": "14x14 windows, global after each quarter",
            "code": "14x14 windows, global after each quarter",
        },
        "relative positions": {
            "key": "model.relative_positions",
            "paper": "decomposed",
            "code": "decomposed",
        },
        "pyramid": {
            "ours": "simple, from the last map",
            "paper": "simple, from the last map",
            "code": "simple, from the last map",
        },
        "norm in pyramid": {"key": "model.fpn_norm", "paper": "LN", "code": "LN"},
        "norm in box and mask heads": {"key": "model.head_norm", "paper": "LN", "code": "LN"},
        "convolutions in RPN": {"key": "model.rpn_convs", "paper": 2, "code": 2},
        "Cascade R-CNN": {"key": "model.cascade"},
    },
}

from tasks.detection import lazy_config  # noqa: E402

_config = lazy_config(recipe, backbone="vit_base_patch16", dataset="coco")
model, dataloader, optimizer = _config["model"], _config["dataloader"], _config["optimizer"]
lr_multiplier, train = _config["lr_multiplier"], _config["train"]
