# Positions on a map, by the network that sees both: on whole tiles where there are some. How sure it is tell two halves
# of it, each asked for the training tiles that it did not see. The finer level is learned on each run's own tiles, and
# written into its folder: what comes after it is with it.
ON="demo: --sides 100 --queries 1 --tiles 8 all:"
HALVES="--halves @both-half @both-other-half"
GROUND=
[ "$NAME" != S1S2align200 ] || GROUND="--crs EPSG:3395"           # its 10 m are a Mercator map's

test_row match-structure     code_Match contrastive-both --method structure $ON $GROUND
test_row match-finer         code_Match/finer.py contrastive-both demo: --steps 2
test_row match-cells         code_Match contrastive-both --method cells $ON $GROUND
row both-half                code_Con $DRAWING $BOTH --validate 0.5
row both-other-half          code_Con $DRAWING $BOTH --validate 0.5 --other_half
test_row half-finer          code_Match/finer.py both-half demo: --steps 2
test_row other-half-finer    code_Match/finer.py both-other-half demo: --steps 2
test_row match-calibration   code_Match/calibrate.py contrastive-both $HALVES $GROUND demo: --queries 1
test_row match-voting        code_Match contrastive-both --method voting $ON $GROUND
test_row match-graph         code_Match contrastive-both --method graph $HALVES $ON $GROUND
test_row match-ncc           code_Match contrastive-both --method ncc $ON $GROUND
test_row match-mi            code_Match contrastive-both --method mi --queries 2 $ON $GROUND
