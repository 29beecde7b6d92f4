"""Frozen features of the miniature without a trained head; ours.

As `frozen/paper`. Differs: mean-pooled features, as in the miniature's linear probe.
"""

recipe = {
    "data": {
        "image_size": 64,
        "crop_scale": [1.0, 1.0],
        "crop_ratio": 1.0,
        # Training images are seen as validation images are.
        "augmentation": "none",
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "pool": "mean",
        "neighbours": 20,
        "temperature": 0.07,
        "shots": [1, 5, 10],
        "draws": 3,
    },
    "solver": {"batch_size": 64, "amp": None, "num_workers": 0},
}
smoke = {"data.val_images": 32, "model.shots": [1], "model.draws": 1}
