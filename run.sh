#!/usr/bin/env bash
# Trains, tests and tabulates rows of methods: results/<data set>/table.md and .csv, and report.html with all to see.
#
#   bash run.sh                                          data/SN6align200 if it is there, else the demo pairs
#   DATA_PATH=data/S1S2align200 SEEDS="0 1 2" bash run.sh
#   ROWS="triplet triplet+exchange" EPOCHS=5 bash run.sh                       these rows alone, of any table
#   TABLES="ablation NAME" bash run.sh                                         tables by name, or TABLES=all
#   FLAGS="--img_size 64 --layer4_stride 2" EPOCHS=12 bash run.sh              more flags for every row that trains
#   RECIPE=cpu bash run.sh                                                     with CUDA, too, what trains on a CPU
#   PYTHON=python3 bash run.sh                                                 an environment of your own
#
# A finished row is not trained again; after an interruption the same call goes on.
# Your own row: copy a script folder, change it, and add one line to a table in tables/.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source shared/plumbing/setup.sh requirements.txt

# The data, and how it is trained on ------------------------------------------------------------------------
has_data() {
  "$PYTHON" -c 'import sys; from shared.reading.layouts import find_data, layout_of
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
NAME=$(basename "$DATA_PATH") SEEDS=${SEEDS:-0} PROFILE= PROFILES="all:" DRAWING=--symmetries
# With CUDA every flag's default, the author's recipe; without, or if RECIPE=cpu, what trains on a CPU in minutes. Of
# a row's flags those after cpu: count in the second, those after demo: and real: there for demo pairs and for others.
if [ "${RECIPE:-}" = cpu ] || ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  PROFILE="--recipe cpu" PROFILES+=" cpu: real:"
  if [ "$NAME" = demo ]; then
    PROFILE+=" --img_size 64 --batch_size 24 --epochs 4" PROFILES="all: cpu: demo:"
  fi
fi
for folder in "$DATA_PATH" "$HOME/$DATA_PATH"; do [ ! -d "$folder/train_tiles" ] || DRAWING=--windows; done
[ -z "${SOURCE:-}" ] || NAME+=-from-${SOURCE// /-}            # other regions, other results: tables/regions.sh
# A second data set of the same name would stand in the first one's tables.
"$PYTHON" -c 'import sys
from shared.reading.fingerprint import require_own_results
from shared.plumbing.errors import run_script
run_script(lambda: require_own_results(*sys.argv[1:]))' "results/$NAME" "$DATA_PATH"
MORE="${FLAGS:-}${EPOCHS:+ --epochs $EPOCHS}"
echo "data: $DATA_PATH   seeds: $SEEDS   profile: ${PROFILE:-the default of every flag} $MORE"

# The rows --------------------------------------------------------------------------------------------------
# tables/NAME.sh                          the rows of a table, in results/<data set>/NAME.md (the ablation: table.md)
# row NAME FOLDER [flags of train.py]     a row that trains (FOLDER/SCRIPT.py: by another script than train.py)
# row NAME FOLDER/test.py [flags of test.py]      a row that learns nothing; every table opens with one
# test_row NAME FOLDER ROW [flags of test.py]     a row that is another row's runs, tested otherwise (or drawn with)
# In the flags @ROW stands for another row's run with the same seed, as in --init @ROW; that row is then run first.
tables=() in_table=() names=() scripts=() flags=()
add() {                                                 # name, script, flags: those of this profile are kept
  local word of=all: kept=
  in_table+=("$table") names+=("$1") scripts+=("$2")
  for word in "${@:3}"; do
    case $word in
      all: | cpu: | demo: | real:) of=$word ;;
      *) [[ " $PROFILES " != *" $of "* ]] || kept+=" $word" ;;
    esac
  done
  flags+=("$kept")
}
script_of() { [[ $1 == *.py ]] && echo "$1" || echo "$1/$2"; }
row() { add "$1" "$(script_of "$2" train.py)" "${@:3}"; }
test_row() { add "$1" "$(script_of "$2" test.py)" --run "@$3" "${@:4}"; }
for table in ablation $(cd tables && ls *.sh | sed 's/\.sh$//' | sort | grep -vx ablation); do
  tables+=("$table")
  source "tables/$table.sh"
done

order=() wanted=()
want() {                                                # a row, after the rows whose runs it starts from
  local i word
  for i in "${!names[@]}"; do [ "${names[i]}" != "$1" ] || break; done
  [ "${names[i]}" = "$1" ] || { echo "error: ${2:-ROWS names} $1, but run.sh has no such row" >&2; exit 2; }
  [ -z "${wanted[i]:-}" ] || return 0
  wanted[i]=1
  for word in ${flags[i]}; do [[ $word != @* ]] || want "${word#@}" "row $1 starts from"; done
  order+=("$i")
}
asked=${TABLES:-ablation}
[ "$asked" != all ] || asked=${tables[*]}
for name in $asked; do
  [[ " ${tables[*]} " == *" $name "* ]] ||
    { echo "error: TABLES names $name, but run.sh has the tables ${tables[*]}" >&2; exit 2; }
done
for i in "${!names[@]}"; do
  [ -n "${ROWS:-}" ] || [[ " $asked " != *" ${in_table[i]} "* ]] || want "${names[i]}"
done
for name in ${ROWS:-}; do want "$name"; done

# Training and testing, the tables, the pictures and the page -------------------------------------------------
failed=()
for i in "${order[@]}"; do
  for seed in $SEEDS; do
    command=("$PYTHON" "${scripts[i]}" --result_path "results/$NAME/${names[i]}/seed$seed")
    [[ " ${flags[i]} " == *" --run "* ]] || command+=(--data_path "$DATA_PATH")
    [[ ${scripts[i]} != */train*.py ]] || command+=(--seed "$seed" $PROFILE)
    for word in ${flags[i]}; do
      [[ $word != @* ]] || word=results/$NAME/${word#@}/seed$seed
      command+=("$word")
    done
    [[ ${scripts[i]} != */train*.py ]] || command+=($MORE)
    echo "== ${names[i]}, seed $seed"
    "${command[@]}" || { [ $? -ne 130 ] || exit 130; failed+=("${names[i]} (seed $seed)"); }
  done
done
source tools/tabulate.sh
[ ${#failed[@]} -eq 0 ] || { echo "not finished: ${failed[*]}; each says why where it began, above" >&2; exit 1; }
