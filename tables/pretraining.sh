# Starting from less than ImageNet: SimSiam's backbone, trained without labels, and an encoder that can be drawn from.
# From SimSiam's backbone the triplet loss collapses at the rate that serves from nothing, so the rates there are lower.
row structure                     code_Structure/test.py
row simsiam                       code_SimSiam $DRAWING
row triplet-from-simsiam          code --init @simsiam cpu: --lr 0.03 --lr_head 0.03
row triplet+exchange-from-simsiam code_Aux --channel_exchange --init @simsiam cpu: --lr 0.017 --lr_head 0.017
row contrastive-from-simsiam      code_Con $DRAWING --init @simsiam cpu: --lr 1e-3 --lr_head 1e-3 demo: --epochs 12
row san                           code_SAN
row san-self                      code_SAN --draw self
row san-triplet                   code_SAN --decoder_triplet
row san-first                     code_SAN --reconstruction_only
row san-pg                        code_SAN --init @san-first --decoder @san-first cpu: --lr 0.03 --lr_head 0.03
