# From the baseline to the contrastive recipe, a piece a row, at some ten minutes of a core each: docs/contrastive.md.
# DRAWING and BOTH: run.sh and tables/ablation.sh. Of two rates on held-out tiles 1e-3 was the best without cells.
POOLED="--pooling max --stages 5 cpu: --layer4_stride 1 --lr 1e-3 --lr_head 1e-3 all:"

row structure        code_Structure/test.py
row triplet          code
row ladder-windows   code_Con $DRAWING $POOLED real: --part 96 --epochs 21 demo: --part 64 --epochs 4
row ladder-cells     code_Con $DRAWING real: --part 96 --epochs 88 demo: --part 64 --epochs 12
row contrastive      code_Con $DRAWING demo: --epochs 12
row ladder-structure code_Con $DRAWING $BOTH real: --epochs 70
