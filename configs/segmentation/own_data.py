"""UperNet on a dataset of one's own: a few hundred images, one GPU or a CPU.

No paper's: `upernet` in small. Sizes follow the images, the head is narrower, and lr is higher as
the training is shorter. Larger: `--set data.image_size=640 --set data.crop_size=512`; the whole
protocol: `--recipe segmentation/upernet`.
"""

base = "segmentation/upernet"

variants = [
    (
        {},
        {
            # The median of the training images' shorter sides, from 64 to 512 px.
            "data.image_size": None,
            "data.crop_size": None,
            "model.channels": 128,
            "model.aux_channels": 64,
            "solver.iterations": None,
            "solver.epochs": 50,
            "solver.batch_size": 8,
            "solver.lr": 5e-4,
            "solver.warmup_iterations": None,
            "solver.warmup_epochs": 2.5,
            "solver.amp": None,
            "solver.num_workers": 2,
            "solver.save_every": 200,
            "test.stride": None,
            "test.validate_every": None,
            "reference.curve": None,
        },
    ),
]

smoke = {
    "data.image_size": None,
    "data.crop_size": None,
    "test.stride": None,
}

protocol = None

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import config_of  # noqa: E402

globals().update(
    config_of("segmentation/own_data", dataset="mini-ade20k", backbone="vit_mini_patch8")
)
