"""Steps of MAE pretraining, timed. See `tasks.pretraining.wallclock`.

As `mae.py`, with 800 epochs and the batch of one GPU instead of 4096.
"""

recipe = {
    "data": {
        "image_size": 224,
        "augmentation": "random",
        "crop_scale": [0.2, 1.0],
        "crop_ratio": 0.875,
        "val_images": 1,
        "cache": False,
    },
    "model": {
        "target": "pixel",
        "mask_ratio": 0.75,
        "encoder_mask_tokens": False,
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": None,
    },
    "solver": {
        "epochs": 800,
        "iterations": 30,
        "batch_size": 64,
        "base_lr": 1.5e-4,
        "betas": [0.9, 0.95],
        "amp": "bfloat16",
    },
}
smoke = {"solver.iterations": 2, "solver.batch_size": 2}
