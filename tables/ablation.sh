# The author's ablation, what learns nothing before it and the recipe behind it.

row structure                      code_Structure/test.py
row triplet                        code
row triplet+exchange               code_Aux --channel_exchange
row triplet+adv                    code_Adv
row triplet+adv+exchange           code_Adv --channel_exchange
row triplet+adv+exchange+guided    code_Adv --channel_exchange --guided_filter
row triplet+adv+exchange-normalize code_Adv --channel_exchange --no_normalize
row triplet+exchange+guided        code_Aux --channel_exchange --guided_filter
row sharing-3                      code_Adv --channel_exchange --specify_num 3
row sharing-5                      code_Adv --channel_exchange --specify_num 5 cpu: --lr 0.017 --lr_head 0.017

# Contrastive learning begins slowly, and its steps are the cheapest: more of the demo's epochs. BOTH, in other tables,
# too: the network that sees structure and the image.
BOTH="--input both --pooling cells --stages 3 --loss infonce --left_out 0.33 --toned 0.33"
BOTH+=" real: --img_size 200 --part 64 --epochs 100 demo: --epochs 12 all:"
row contrastive                    code_Con $DRAWING demo: --epochs 12
row contrastive-both               code_Con $DRAWING $BOTH

test_row triplet-test-flip          code triplet --tta flip
test_row triplet-test-exchange      code triplet --tta exchange
test_row triplet-test-guided        code triplet --tta guided
test_row exchange-test-exchange     code_Aux triplet+exchange --tta exchange
test_row contrastive-test-time      code_Con contrastive --tta symmetries
test_row contrastive+structure      code_Structure/fusion.py contrastive
test_row contrastive-both-test-time code_Con contrastive-both --tta symmetries
