"""Frozen features of ImageNet-1K and other large sets without a trained head; ours.

k-NN as facebookresearch/dino eval_knn.py (20 neighbours, temperature 0.07), and ridge regression on
1, 5 and 10 images per class. The MAE paper has neither; the feature is that of its linear probe.
"""

recipe = {
    "data": {
        "image_size": 224,
        "crop_scale": [1.0, 1.0],
        "crop_ratio": 0.875,
        # Training images are seen as validation images are.
        "augmentation": "none",
        "val_images": None,
        "cache": False,
        "max_broken": 10,
    },
    "model": {
        "pool": "token",
        "neighbours": 20,
        "temperature": 0.07,
        "shots": [1, 5, 10],
        "draws": 3,
    },
    "solver": {"batch_size": 256, "amp": "bfloat16", "num_workers": 8},
}
variants = [
    # The miniature's encoder at its own size, where it reads somebody's own images.
    ({"backbone": "*_mini_*"}, {"data.image_size": 64}),
]
smoke = {"data.val_images": 16, "model.shots": [1], "model.draws": 1}
protocol = {
    "paper": "none: ours, beside arXiv:2111.06377 Table 12",
    "settings": {
        "feature": {"key": "model.pool"},
        "neighbours": {"key": "model.neighbours"},
        "temperature": {"key": "model.temperature"},
        "images per class": {"key": "model.shots"},
    },
}
