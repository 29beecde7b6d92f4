"""Fine-tuning on Places205 and Places365: not published; ours.

The paper fine-tunes with the setting of its Table 9, lr and number of epochs adjusted for each
dataset, and gives neither (arXiv:2111.06377 A.5). Ours: Table 9, 50 epochs for ViT-B and 25 for
ViT-L and ViT-H, since these sets are larger than ImageNet, and erasing 0.1. Nothing was searched.
The nearest documented recipe is DeiT-B's for iNaturalist, cited in `inat`.
"""

base = "classification/inat"

variants = [
    ({}, {"solver.epochs": 50}),
    ({"backbone": "vit_large*"}, {"solver.epochs": 25}),
    ({"backbone": "vit_huge*"}, {"solver.epochs": 25}),
]
