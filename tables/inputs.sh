# What the network sees: the image, oriented gradients in its place, or both. docs/answers.md.
row structure                      code_Structure/test.py
row triplet                        code
row triplet-sees-structure         code --input structure
row triplet-sees-both              code --input both
row triplet+exchange               code_Aux --channel_exchange
row triplet+exchange-sees-structure code_Aux --channel_exchange --input structure
row triplet+exchange-sees-both     code_Aux --channel_exchange --input both
