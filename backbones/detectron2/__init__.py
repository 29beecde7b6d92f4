"""Our encoders as detectron2 backbones: builders for LazyConfig, registry names for yacs.

`import backbones.detectron2` is all that either needs. LazyConfigs call `vit_fpn` (Li et al.) or
`vit_simple_pyramid` (ViTDet). In yacs, MODEL.BACKBONE.NAME is an encoder's name with `_fpn` or
`_simple_pyramid` behind it (without: the bare pyramid), or `mae_bench` in its place and any name of
`create_backbone` in MODEL.VIT.NAME. Works with detectron2 0.6 and with its main branch.
"""

from backbones.detectron2.names import restore_names

restore_names()

from backbones.detectron2.builders import (  # noqa: E402
    encoder_of,
    load_report_of,
    norm_named,
    vit_features,
    vit_fpn,
    vit_simple_pyramid,
)
from backbones.detectron2.features import (  # noqa: E402
    HierarchicalFeatures,
    ViTDetFeatures,
    ViTFeatures,
    ViTFPN,
    level_name,
)
from backbones.detectron2.yacs import add_vit_config, register_all  # noqa: E402

__all__ = [
    "HierarchicalFeatures",
    "ViTDetFeatures",
    "ViTFPN",
    "ViTFeatures",
    "add_vit_config",
    "encoder_of",
    "level_name",
    "load_report_of",
    "norm_named",
    "restore_names",
    "vit_features",
    "vit_fpn",
    "vit_simple_pyramid",
]

register_all()
