"""Steps of MAE pretraining, timed on the miniature. See `tasks.pretraining.wallclock`.

For a ViT-Ti, with a decoder that is as light beside it as the paper's beside a ViT-L: a twelfth per
token.
"""

recipe = {
    "data": {
        "image_size": 224,
        "augmentation": "random",
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 1.0,
        "val_images": 1,
        "cache": False,
    },
    "model": {
        "target": "pixel",
        "mask_ratio": 0.75,
        "encoder_mask_tokens": False,
        "decoder_width": 64,
        "decoder_depth": 8,
        "decoder_heads": None,
    },
    "solver": {
        "epochs": 800,
        "iterations": 12,
        "batch_size": 4,
        "base_lr": 1.5e-4,
        "betas": [0.9, 0.95],
        "amp": None,
    },
}
smoke = {"solver.iterations": 2, "solver.batch_size": 2}
