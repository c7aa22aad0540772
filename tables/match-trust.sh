# How far a position can be trusted: each query on its own tile, and on another. ON and GROUND: tables/match.sh.
test_row match-trust         code_Match contrastive-both --method trust --calibration @match-calibration $ON $GROUND
