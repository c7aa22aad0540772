#!/usr/bin/env bash
# Trains, tests and tabulates rows of methods: results/<data set>/table.md and .csv, and report.html with all to see.
#
#   bash run.sh                                          data/SN6align200 if it is there, else the demo pairs
#   DATA_PATH=data/S1S2align200 SEEDS="0 1 2" bash run.sh
#   ROWS="triplet triplet+exchange" EPOCHS=5 bash run.sh                       these rows alone, of any table
#   TABLES="ablation NAME" bash run.sh                                         tables by name, or TABLES=all
#   FLAGS="--img_size 64 --layer4_stride 2" EPOCHS=12 bash run.sh              more flags for every row that trains
#   PYTHON=python3 bash run.sh                                                 an environment of your own
#
# A finished row is not trained again; after an interruption the same call goes on.
# Your own row: copy a script folder, change it, add one line to the rows below.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source shared/plumbing/setup.sh requirements.txt

# The data --------------------------------------------------------------------------------------------------
has_data() {
  "$PYTHON" -c 'import sys; from shared.layouts import find_data, layout_of
sys.exit(layout_of(find_data(sys.argv[1])) is None)' "$1"
}
if [ -z "${DATA_PATH:-}" ]; then
  DATA_PATH=data/SN6align200
  if ! has_data "$DATA_PATH"; then
    DATA_PATH=data/demo
    [ -f data/demo/pairs.csv ] || "$PYTHON" data/demo/prepare.py
    echo "no data set found: these are the demo pairs, a check that everything works and no result"
  fi
elif [ -d "$caller/$DATA_PATH" ]; then
  DATA_PATH=$caller/$DATA_PATH
fi
NAME=$(basename "$DATA_PATH")
SEEDS=${SEEDS:-0}

# The profile -----------------------------------------------------------------------------------------------
# With CUDA the recipe that is every flag's default: ResNet50 from ImageNet weights, 200 px, 60 epochs. Without, what
# trains from scratch on a CPU in minutes; each train.py's --help tells what that is.
PROFILE= SAMPLE= LONGER= SIDES= SURE= GROUND= GENTLY= SOFTLY= SLOWLY= FEW= SOON= PART= BRIEF=
BOTH="--input both --pooling cells --stages 3 --loss infonce --left_out 0.33 --toned 0.33"
LITE="--arch timm:tf_efficientnet_lite0 --init lite0"
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  PROFILE="--recipe cpu"
  PART="--part 64"                      # of larger images alone; cells do not know an image's size
  GENTLY="--lr 0.03 --lr_head 0.03" SOFTLY="--lr 0.017 --lr_head 0.017" SLOWLY="--lr 1e-3 --lr_head 1e-3"
  if [ "$NAME" = demo ]; then
    PROFILE+=" --img_size 64 --batch_size 24 --epochs 4" SAMPLE="--sample 24"
    LONGER="--epochs 12"                # contrastive learning begins slowly, and its steps are the cheapest
    SIDES="--sides 100 --queries 1 --tiles 8" SURE="--queries 1"
    FEW="--target_images 8" SOON="--neighbours_from 2"
    BRIEF="--layer4_stride 2 --epochs 2"
  else
    BOTH+=" --img_size 200 --part 64 --epochs 100"
  fi
fi
[ "$NAME" != S1S2align200 ] || GROUND="--crs EPSG:3395"             # its 10 m are a Mercator map's
if [ -d "$DATA_PATH/train_tiles" ] || [ -d "$HOME/$DATA_PATH/train_tiles" ]; then
  MANY=--windows
else
  MANY=--symmetries
fi
# The regions: where there are pairs, and where there are none. SOURCE="T11SLT T11SMT" TARGET=T14RNT goes the other way.
TARGET=${TARGET:-} FROM_SOURCE= FROM_TARGET= ADAPT=
if [ -n "${SOURCE:-}" ]; then
  NAME+=-from-${SOURCE// /-}
elif [ "$NAME" = demo ]; then
  SOURCE=left TARGET=right
elif [ "$NAME" = S1S2align200 ]; then
  SOURCE=T14RNT TARGET="T11SLT T11SMT"
  # 800 steps of 300 places and of 900, and some 320 of half a batch to adapt
  FROM_SOURCE="--epochs 200" FROM_TARGET="--epochs 57" ADAPT="--batch_size 32 --epochs 36 --lr 5e-4 --lr_head 5e-4"
fi
# A second data set of the same name would stand in the first one's tables.
"$PYTHON" -c 'import sys
from shared.fingerprint import require_own_results
from shared.plumbing.errors import run_script
run_script(lambda: require_own_results(*sys.argv[1:]))' "results/$NAME" "$DATA_PATH"
ACROSS="$MANY --region ${SOURCE:-} --target_region ${TARGET:-}"
MORE="${FLAGS:-}${EPOCHS:+ --epochs $EPOCHS}"
echo "data: $DATA_PATH   seeds: $SEEDS   profile: ${PROFILE:-the default of every flag} $MORE"

# The rows --------------------------------------------------------------------------------------------------
# table NAME                              the rows below it, in results/<data set>/NAME.md (the ablation: table.md)
# row NAME FOLDER [flags of train.py]     a row that trains (FOLDER/SCRIPT.py: by another script than train.py)
# row NAME FOLDER/test.py [flags of test.py]      a row that learns nothing; every table opens with one
# test_row NAME FOLDER ROW [flags of test.py]     a row that is another row's runs, tested otherwise (or drawn with)
# In the flags @ROW stands for another row's run with the same seed, as in --init @ROW; that row is then run first.
tables=() in_table=() names=() scripts=() flags=()
table() { current_table=$1; tables+=("$1"); }
add() { in_table+=("$current_table"); names+=("$1"); scripts+=("$2"); shift 2; flags+=("$*"); }
script_of() { [[ $1 == *.py ]] && echo "$1" || echo "$1/$2"; }
row() { local name=$1 script; script=$(script_of "$2" train.py); shift 2; add "$name" "$script" "$@"; }
test_row() {
  local name=$1 script trained=$3
  script=$(script_of "$2" test.py); shift 3; add "$name" "$script" --run "@$trained" "$@"
}

table ablation
row structure                      code_Structure/test.py
row triplet                        code
row triplet+exchange               code_Aux --channel_exchange
row triplet+adv                    code_Adv
row triplet+adv+exchange           code_Adv --channel_exchange
row triplet+adv+exchange+guided    code_Adv --channel_exchange --guided_filter
row triplet+adv+exchange-normalize code_Adv --channel_exchange --no_normalize
row triplet+exchange+guided        code_Aux --channel_exchange --guided_filter
row sharing-3                      code_Adv --channel_exchange --specify_num 3
row sharing-5                      code_Adv --channel_exchange --specify_num 5 $SOFTLY
row contrastive                    code_Con $MANY $LONGER
row contrastive-both               code_Con $MANY $LONGER $BOTH
test_row triplet-test-flip         code triplet --tta flip
test_row triplet-test-exchange     code triplet --tta exchange
test_row triplet-test-guided       code triplet --tta guided
test_row exchange-test-exchange    code_Aux triplet+exchange --tta exchange
test_row contrastive-test-time     code_Con contrastive --tta symmetries
test_row contrastive+structure     code_Structure/fusion.py contrastive
test_row contrastive-both-test-time code_Con contrastive-both --tta symmetries

# Positions on a map, by the network that sees both: on whole tiles where there are some. How sure it is tell two halves
# of it, each asked for the training tiles that it did not see.
HALVES="--halves @both-half @both-other-half"
table match
test_row match-structure     code_Match contrastive-both --method structure $SIDES $GROUND
test_row match-cells         code_Match contrastive-both --method cells $SIDES $GROUND
row both-half                code_Con $MANY $LONGER $BOTH --validate 0.5
row both-other-half          code_Con $MANY $LONGER $BOTH --validate 0.5 --other_half
test_row match-calibration   code_Match/calibrate.py contrastive-both $HALVES $SURE $GROUND
test_row match-voting        code_Match contrastive-both --method voting $SIDES $GROUND
test_row match-graph         code_Match contrastive-both --method graph $HALVES $SIDES $GROUND
test_row match-ncc           code_Match contrastive-both --method ncc $SIDES $GROUND
test_row match-mi            code_Match contrastive-both --method mi --queries 2 $SIDES $GROUND
table match-trust
test_row match-trust         code_Match contrastive-both --method trust --calibration @match-calibration $SIDES $GROUND

# Starting from less than ImageNet: SimSiam's backbone, trained without labels, and an encoder that can be drawn from.
# From SimSiam's backbone the triplet loss collapses at the rate that serves from nothing, so the rates there are lower.
table pretraining
row structure                     code_Structure/test.py
row simsiam                       code_SimSiam $MANY
row triplet-from-simsiam          code --init @simsiam $GENTLY
row triplet+exchange-from-simsiam code_Aux --channel_exchange --init @simsiam $SOFTLY
row contrastive-from-simsiam      code_Con $MANY $LONGER --init @simsiam $SLOWLY
row san                           code_SAN
row san-self                      code_SAN --draw self
row san-triplet                   code_SAN --decoder_triplet
row san-first                     code_SAN --reconstruction_only
row san-pg                        code_SAN --init @san-first --decoder @san-first $GENTLY

# From ImageNet, where the author starts, also on a machine that can download nothing but packages: docs/pretrained.md.
table pretrained
row structure                            code_Structure/test.py
row lite0-triplet                        code $LITE $BRIEF
row lite0-triplet+exchange               code_Aux --channel_exchange $LITE $BRIEF
row lite0-triplet+exchange+guided        code_Aux --channel_exchange --guided_filter $LITE $BRIEF
row lite0-triplet+adv                    code_Adv $LITE $BRIEF
row lite0-triplet+adv+exchange           code_Adv --channel_exchange $LITE $BRIEF
row lite0-triplet+adv+exchange+guided    code_Adv --channel_exchange --guided_filter $LITE $BRIEF
row lite0-triplet+adv+exchange-normalize code_Adv --channel_exchange --no_normalize $LITE $BRIEF
row lite0-sharing-3                      code_Adv --channel_exchange --specify_num 3 $LITE $BRIEF
row lite0-sharing-5                      code_Adv --channel_exchange --specify_num 5 $LITE $BRIEF
row lite0-contrastive                    code_Con $MANY $LONGER $LITE $BRIEF

# A region without pairs: the source's pairs, and the target's images. Every way starts from the source's network.
table regions
row regions-structure  code_Structure/test.py --target_region $TARGET
row source-only        code_Con $ACROSS $PART $LONGER $FROM_SOURCE
row source-both        code_Con $ACROSS $BOTH $LONGER $FROM_SOURCE
test_row source-both-querybank code_Adapt source-both --querybank
row target-supervised  code_Con $MANY --region $TARGET --target_region $TARGET $PART $LONGER $FROM_TARGET
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

# Pseudo-modal images from a generator, beside triplet and triplet+exchange.
table generated
row structure                   code_Structure/test.py
row pairs-gan                   code_HHL/train_generator.py
test_row pairs-gan-images       code_HHL/generate.py pairs-gan
row diffusion                   code_Diffusion $MANY
test_row diffusion-images       code_Diffusion/generate.py diffusion
row triplet+generated-gan       code_Aux --generated @pairs-gan-images
row triplet+generated-diffusion code_Aux --generated @diffusion-images

# Where no network was trained: the data sets in the folder worlds beside DATA_PATH, aligned, and windows anywhere.
table worlds
row worlds-structure        tools/worlds.py
test_row worlds-contrastive tools/worlds.py contrastive
test_row worlds-contrastive-both tools/worlds.py contrastive-both

# What is asked for -----------------------------------------------------------------------------------------
number_of() {
  local i
  for i in "${!names[@]}"; do [ "${names[i]}" != "$1" ] || { number=$i; return 0; }; done
  echo "error: ${2:-ROWS names} $1, but run.sh has no such row" >&2
  exit 2
}
order=() wanted=()
want() {                                                # a row, after the rows whose runs it starts from
  local number word
  number_of "$@"
  [ -z "${wanted[number]:-}" ] || return 0
  wanted[number]=1
  for word in ${flags[number]}; do
    [[ $word != @* ]] || want "${word#@}" "row $1 starts from"
  done
  order+=("$number")
}
asked=${TABLES:-ablation}
[ "$asked" != all ] || asked=${tables[*]}
for name in $asked; do
  [[ " ${tables[*]} " == *" $name "* ]] ||
    { echo "error: TABLES names $name, but run.sh has the tables ${tables[*]}" >&2; exit 2; }
done
if [ -n "${ROWS:-}" ]; then
  for name in $ROWS; do want "$name"; done
else
  for i in "${!names[@]}"; do
    [[ " $asked " != *" ${in_table[i]} "* ]] || want "${names[i]}"
  done
fi

# Training and testing ----------------------------------------------------------------------------------------
failed=()
for i in "${order[@]}"; do
  for seed in $SEEDS; do
    name=${names[i]}
    command=("$PYTHON" "${scripts[i]}" --result_path "results/$NAME/$name/seed$seed")
    [[ " ${flags[i]} " == *" --run "* ]] || command+=(--data_path "$DATA_PATH")
    [[ ${scripts[i]} != */train*.py ]] || command+=(--seed "$seed" $PROFILE)
    for word in ${flags[i]}; do
      [[ $word != @* ]] || word=results/$NAME/${word#@}/seed$seed
      command+=("$word")
    done
    [[ ${scripts[i]} != */train*.py ]] || command+=($MORE)
    echo "== $name, seed $seed"
    "${command[@]}" || { [ $? -ne 130 ] || exit 130; failed+=("$name (seed $seed)"); }
  done
done

# The tables, the pictures and the page -------------------------------------------------------------------------
[ ${#failed[@]} -eq 0 ] || echo "not finished: ${failed[*]}" >&2
if ! grep -qs '"evaluated_on": "test"' "results/$NAME"/*/seed*/metrics.json; then
  echo "no table yet: no row was evaluated on the test split"
  [ ${#failed[@]} -eq 0 ] && exit 0 || exit 1
fi
table_flags=()
for name in "${tables[@]}"; do
  if [ "$name" = ablation ]; then table_flags+=(--rows); else table_flags+=(--table "$name"); fi
  for i in "${!names[@]}"; do
    [ "${in_table[i]}" != "$name" ] || table_flags+=("${names[i]}")
  done
done
"$PYTHON" tools/results.py "results/$NAME" "${table_flags[@]}"
runs=() analyzed=1
for name in triplet triplet+exchange triplet+adv contrastive; do
  run=results/$NAME/$name/seed${SEEDS%% *}
  [ -f "$run/metrics.json" ] || continue
  runs+=(--run "$run")
  [ -f "$run/analysis/figures.json" ] || analyzed=0
done
[ $analyzed = 1 ] || "$PYTHON" tools/analyze.py "${runs[@]}"
if [ ${#runs[@]} -gt 0 ] && [ ! -f "results/$NAME/filters/filters.csv" ]; then
  "$PYTHON" tools/compare_filters.py --data_path "$DATA_PATH" "${runs[@]:0:2}" $SAMPLE
fi
"$PYTHON" tools/report.py "results/$NAME" "${table_flags[@]}" --data_path "$DATA_PATH"
[ ${#failed[@]} -eq 0 ]
