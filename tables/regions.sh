# A region without pairs: the source's pairs, and the target's images. Every way starts from the source's network.
# SOURCE="T11SLT T11SMT" TARGET=T14RNT goes the other way.
TARGET=${TARGET:-} FROM_SOURCE= FROM_IMAGENET= FROM_TARGET= ADAPT=
if [ "$NAME" = demo ]; then
  SOURCE=left TARGET=right
elif [ "$NAME" = S1S2align200 ]; then
  SOURCE=T14RNT TARGET="T11SLT T11SMT"
  # 800 steps of 300 places and of 900, 1,600 from ImageNet, and some 320 of half a batch to adapt
  FROM_SOURCE="--epochs 200" FROM_IMAGENET="--epochs 800" FROM_TARGET="--epochs 57"
  ADAPT="--batch_size 32 --epochs 36 --lr 5e-4 --lr_head 5e-4"
fi
ACROSS="$DRAWING --region ${SOURCE:-} --target_region $TARGET"
PART="cpu: --part 64 all:"                              # of larger images alone; cells do not know an image's size
LONGER="demo: --epochs 12 all:"
SEES_BOTH="--input both --pooling cells --stages 3 real: --img_size 200 all:"
FEW="demo: --target_images 8 all:" SOON="demo: --neighbours_from 2 all:"

row regions-structure  code_Structure/test.py --target_region $TARGET
row source-only        code_Con $ACROSS $PART $LONGER $FROM_SOURCE
row source-both        code_Con $ACROSS $BOTH $FROM_SOURCE
test_row source-both-querybank code_Adapt source-both --querybank
row tones-both         code_Adapt $ACROSS $SEES_BOTH --start @source-both --tone_pairs 1 $PART $ADAPT
test_row tones-both-querybank code_Adapt tones-both --querybank
row source-lite0       code_Con $ACROSS $BOTH_LITE $FROM_IMAGENET
test_row source-lite0-querybank code_Adapt source-lite0 --querybank
row tones-lite0        code_Adapt $ACROSS $SEES_BOTH $IMAGENET --start @source-lite0 --tone_pairs 1 $PART $ADAPT
test_row tones-lite0-querybank code_Adapt tones-lite0 --querybank
row target-supervised  code_Con $DRAWING --region $TARGET --target_region $TARGET $PART $LONGER $FROM_TARGET
test_row adabn         code_Adapt source-only --batchnorm target
test_row whitened      code_Adapt source-only --whiten
test_row adabn+whitened code_Adapt source-only --batchnorm target --whiten
test_row querybank     code_Adapt source-only --querybank
test_row source-only-test-time       code_Con source-only --tta symmetries
test_row target-supervised-test-time code_Con target-supervised --tta symmetries
test_row adabn+whitened-test-time    code_Adapt source-only --batchnorm target --whiten --tta symmetries
row coral              code_Adapt $ACROSS --start @source-only --coral 1 $PART $ADAPT
row critic             code_Adapt $ACROSS --start @source-only --critic 0.001 $PART $ADAPT
row pseudo-pairs       code_Adapt $ACROSS --start @source-only --pseudo_pairs 1 $PART $ADAPT
test_row pseudo-pairs+whitened code_Adapt pseudo-pairs --batchnorm target --whiten
row restyle            code_Adapt $ACROSS --start @source-only --restyle $PART $ADAPT
row restyle+pseudo-pairs code_Adapt $ACROSS --start @source-only --restyle --pseudo_pairs 1 $PART $ADAPT
test_row restyle+pseudo-pairs-test-time code_Adapt restyle+pseudo-pairs --batchnorm target --whiten --tta symmetries
row tones              code_Adapt $ACROSS --start @source-only --tone_pairs 1 $PART $ADAPT
row restyle+tones      code_Adapt $ACROSS --start @source-only --restyle --tone_pairs 1 $PART $ADAPT
test_row restyle+tones-test-time code_Adapt restyle+tones --querybank --tta symmetries
row arn                code_ARN $ACROSS --start @source-only $PART $ADAPT
row arn-no-private     code_ARN $ACROSS --start @source-only --no_private $PART $ADAPT
row arn-unsupervised   code_ARN $ACROSS --start @source-only --unsupervised $PART $ADAPT
row arn-reconstruction code_ARN $ACROSS --start @source-only --unsupervised --no_private $PART $ADAPT
row gan                code_HHL/train_generator.py --region $TARGET
test_row gan-images    code_HHL/generate.py gan
row hhl                code_HHL $ACROSS --start @source-only --generated @gan-images $FEW $PART $ADAPT
row ecn-exemplar       code_ECN $ACROSS --start @source-only --neighbours 1 $FEW $ADAPT
row ecn-camera         code_ECN $ACROSS --start @source-only --neighbours 1 --generated @gan-images $FEW $ADAPT
row ecn                code_ECN $ACROSS --start @source-only --generated @gan-images $FEW $SOON $ADAPT
