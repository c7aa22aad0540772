# Pseudo-modal images from a generator, beside triplet and triplet+exchange.
row structure                   code_Structure/test.py
row pairs-gan                   code_HHL/train_generator.py
test_row pairs-gan-images       code_HHL/generate.py pairs-gan
row diffusion                   code_Diffusion $DRAWING
test_row diffusion-images       code_Diffusion/generate.py diffusion
row triplet+generated-gan       code_Aux --generated @pairs-gan-images
row triplet+generated-diffusion code_Aux --generated @diffusion-images
