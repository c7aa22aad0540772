# From ImageNet, where the author starts, also on a machine that can download nothing but packages: docs/pretrained.md.
# The rates were chosen on held-out tiles, for two loss terms and for twelve.
IMAGENET="--arch timm:tf_efficientnet_lite0 --init lite0 demo: --epochs 2 all:"
LITE="$IMAGENET cpu: --layer4_stride 2 --lr_head 0.05 all:"
TWO="cpu: --lr 0.1 all:" TWELVE="cpu: --lr 0.05 all:"

row structure                            code_Structure/test.py
row lite0-triplet                        code $LITE $TWO
row lite0-triplet-longer                 code $LITE $TWO real: --epochs 40
row lite0-triplet+twice                  code_Aux --filter none $LITE $TWELVE
row lite0-triplet+exchange               code_Aux --channel_exchange $LITE $TWELVE
row lite0-triplet+exchange+guided        code_Aux --channel_exchange --guided_filter $LITE $TWELVE
row lite0-triplet+adv                    code_Adv $LITE $TWO
row lite0-triplet+adv+exchange           code_Adv --channel_exchange $LITE $TWELVE
row lite0-triplet+adv+exchange+guided    code_Adv --channel_exchange --guided_filter $LITE $TWELVE
row lite0-triplet+adv+exchange-normalize code_Adv --channel_exchange --no_normalize $LITE $TWELVE
row lite0-sharing-3                      code_Adv --channel_exchange --specify_num 3 $LITE $TWELVE
row lite0-sharing-5                      code_Adv --channel_exchange --specify_num 5 $LITE $TWELVE
row lite0-triplet-60                     code $LITE $TWO real: --epochs 60
row lite0-triplet+adv-60                 code_Adv $LITE $TWO real: --epochs 60
row lite0-sharing-3-60                   code_Adv --channel_exchange --specify_num 3 $LITE $TWELVE real: --epochs 60
row lite0-contrastive                    code_Con $DRAWING $IMAGENET

# The network that sees structure, too: the flags but for the epochs, in other tables, too. Long, and in large batches.
BOTH_LITE="$IMAGENET --input both --pooling cells --stages 3 --loss infonce --left_out 0.25 --toned 0.5"
BOTH_LITE+=" real: --img_size 200 --part 64 --batch_size 128 all:"
row lite0-both                           code_Con $DRAWING $BOTH_LITE real: --epochs 200
