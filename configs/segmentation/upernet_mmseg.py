"""UperNet with MAE as mmsegmentation and implus/mae_segmentation ran it: ViT-B 48.13, 48.15 mIoU.

The differences from `upernet`: positions, class token and relative tables are decayed (the
exemption never met their names), and fp16. mmsegmentation's own file asks for fp16 and, without
--amp, trains in fp32; here it is fp16.

Source: mmsegmentation configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py;
implus/mae_segmentation configs/mae/upernet_mae_base_12_512_slide_160k_ade20k.py.
"""

base = "segmentation/upernet"

variants = [({}, {"solver.decay_rule": "beit-seg", "solver.amp": "float16"})]
protocol = {
    "settings": {
        "no weight decay": {
            "ours": "one-dimensional; positions and class token by a name that never matches",
            "code": "one-dimensional; positions and class token by a name that never matches",
        },
    },
}

_base_ = []  # tells mmengine that this is a plain config, in which imports are what they look like

from tasks.segmentation import config_of  # noqa: E402

globals().update(config_of("segmentation/upernet_mmseg", backbone="vit_base_patch16"))
