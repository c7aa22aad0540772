#!/usr/bin/env bash
# Trains, tests and tabulates the ablation: results/<data set>/table.md and .csv, and report.html with all there is to see.
#
#   bash run.sh                                          data/SN6align200 if it is there, else the demo pairs
#   DATA_PATH=data/S1S2align200 SEEDS="0 1 2" bash run.sh
#   ROWS="triplet triplet+exchange" EPOCHS=5 bash run.sh
#   FLAGS="--img_size 64 --layer4_stride 2" EPOCHS=12 bash run.sh      more flags for every row that trains
#   PYTHON=python3 bash run.sh                           an environment of your own
#
# A finished row is not trained again; after an interruption the same call goes on.
# Your own row: copy a script folder, change it, add one line to the rows below.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source shared/setup.sh requirements.txt

# The data --------------------------------------------------------------------------------------------------
has_data() { [ -d "$1/train" ] || [ -f "$1/opt_ori_train.pt" ]; }       # the folder itself holds a prepare script
if [ -z "${DATA_PATH:-}" ]; then
  DATA_PATH=data/SN6align200
  if ! has_data "$DATA_PATH" && ! has_data "$HOME/$DATA_PATH"; then
    DATA_PATH=data/demo
    [ -f data/demo/pairs.csv ] || "$PYTHON" data/demo/prepare.py
    echo "no data set found: these are the demo pairs, a check that everything works and no result"
  fi
elif [ -d "$caller/$DATA_PATH" ]; then
  DATA_PATH=$caller/$DATA_PATH
fi
NAME=$(basename "$DATA_PATH")
SEEDS=${SEEDS:-0}
for name in ${ROWS:-}; do
  grep -qF "row $name " "${BASH_SOURCE[0]##*/}" || { echo "error: ROWS names $name, but run.sh has no such row" >&2; exit 2; }
done

# The profile -----------------------------------------------------------------------------------------------
# With CUDA the recipe that is every flag's default: ResNet50 from ImageNet weights, 200 px, 60 epochs. Without, what
# trains from scratch on a CPU in minutes. The contrastive rows have a recipe of their own (docs/contrastive.md).
AUX= ADV= CON= SHORT=
if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  PROFILE=
else
  PROFILE="--arch resnet18 --img_size 96 --init none --schedule cosine --lr 0.1 --lr_head 0.1 --batch_size 48 --epochs 20"
  AUX="--lr 0.017 --lr_head 0.017"  # twelve triplet terms are summed instead of two: a sixth of the rate; at 0.1 sharing-5 collapses, and sharing-3 with some seeds
  ADV="--lambda_adv 0.001"          # at these learning rates the critic's estimate runs ahead of the model: 0.01 drowns the triplet loss
  CON="--optim adamw --lr 2e-3 --lr_head 2e-3 --batch_size 64 --layer4_stride 2 --specify_num 1 --epochs 48"
  [ "$NAME" != demo ] || SHORT="--img_size 64 --batch_size 24 --epochs 4"
fi
if [ -d "$DATA_PATH/train_tiles" ] || [ -d "$HOME/$DATA_PATH/train_tiles" ]; then CON+=" --windows"; else CON+=" --symmetries"; fi
SHORT+=" ${FLAGS:-}${EPOCHS:+ --epochs $EPOCHS}"
echo "data: $DATA_PATH   seeds: $SEEDS   profile: ${PROFILE:-the default of every flag} $SHORT   contrastive: $CON"

# The rows: name, script folder, flags ------------------------------------------------------------------------
names=() failed=()
wanted() { [[ -z "${ROWS:-}" || " $ROWS " == *" $1 "* ]]; }
try() { "$@" || { [ $? -ne 130 ] || exit 130; failed+=("$name (seed $seed)"); }; }
row() {
  local name=$1 script=$2 seed
  shift 2
  names+=("$name")
  wanted "$name" || return 0
  for seed in $SEEDS; do
    echo "== $name, seed $seed"
    try "$PYTHON" "$script/train.py" --data_path "$DATA_PATH" --result_path "results/$NAME/$name/seed$seed" --seed "$seed" $PROFILE "$@" $SHORT
  done
}
# A row that is another row's runs, tested otherwise: name, script folder, the other row, flags of test.py.
test_row() {
  local name=$1 script=$2 trained=$3 seed
  shift 3
  names+=("$name")
  wanted "$name" || return 0
  for seed in $SEEDS; do
    echo "== $name, seed $seed"
    try "$PYTHON" "$script/test.py" --run "results/$NAME/$trained/seed$seed" --result_path "results/$NAME/$name/seed$seed" "$@"
  done
}

row triplet                        code
row triplet+exchange               code_Aux $AUX --channel_exchange
row triplet+adv                    code_Adv $ADV
row triplet+adv+exchange           code_Adv $AUX $ADV --channel_exchange
row triplet+adv+exchange+guided    code_Adv $AUX $ADV --channel_exchange --guided_filter
row triplet+adv+exchange-normalize code_Adv $AUX $ADV --channel_exchange --no_normalize
row triplet+exchange+guided        code_Aux $AUX --channel_exchange --guided_filter
row sharing-3                      code_Adv $AUX $ADV --channel_exchange --specify_num 3
row sharing-5                      code_Adv $AUX $ADV --channel_exchange --specify_num 5
row contrastive                    code_Con $CON
test_row triplet-test-flip         code triplet --tta flip
test_row triplet-test-exchange     code triplet --tta exchange
test_row triplet-test-guided       code triplet --tta guided
test_row exchange-test-exchange    code_Aux triplet+exchange --tta exchange
test_row contrastive-test-time     code_Con contrastive --tta symmetries

# The table, the pictures and the page --------------------------------------------------------------------------
"$PYTHON" shared/results.py "results/$NAME" --rows "${names[@]}"
[ ${#failed[@]} -eq 0 ] || echo "not finished: ${failed[*]}" >&2
runs=() analyzed=1
for name in triplet triplet+exchange triplet+adv contrastive; do
  run=results/$NAME/$name/seed${SEEDS%% *}
  [ -f "$run/metrics.json" ] || continue
  runs+=(--run "$run")
  [ -f "$run/analysis/figures.json" ] || analyzed=0
done
[ $analyzed = 1 ] || "$PYTHON" tools/analyze.py "${runs[@]}"
[ ${#runs[@]} -eq 0 ] || [ -f "results/$NAME/filters/filters.csv" ] || "$PYTHON" tools/compare_filters.py --data_path "$DATA_PATH" "${runs[@]:0:2}"
"$PYTHON" tools/report.py "results/$NAME" --rows "${names[@]}" --data_path "$DATA_PATH"
[ ${#failed[@]} -eq 0 ]
