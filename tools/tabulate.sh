# Sourced by run.sh: the tables of what stands in results/$NAME, pictures of the first runs, the page with all of it.
if ! grep -qs '"evaluated_on": "test"' "results/$NAME"/*/seed*/metrics.json; then
  echo "no table yet: no row was evaluated on the test split"
  [ ${#failed[@]} -eq 0 ] && exit 0 || exit 1
fi
table_flags=()
for table in "${tables[@]}"; do
  if [ "$table" = ablation ]; then table_flags+=(--rows); else table_flags+=(--table "$table"); fi
  for i in "${!names[@]}"; do
    [ "${in_table[i]}" != "$table" ] || table_flags+=("${names[i]}")
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
sample=                                                 # how many pairs are looked at
[[ $PROFILES != *demo:* ]] || sample="--sample 24"
[ $analyzed = 1 ] || "$PYTHON" tools/analyze.py "${runs[@]}" $sample
if [ ${#runs[@]} -gt 0 ] && [ ! -f "results/$NAME/filters/filters.csv" ]; then
  "$PYTHON" tools/compare_filters.py --data_path "$DATA_PATH" "${runs[@]:0:2}" $sample
fi
"$PYTHON" tools/report.py "results/$NAME" "${table_flags[@]}" --data_path "$DATA_PATH"
