# Where no network was trained: the data sets in the folder worlds beside DATA_PATH, aligned, and windows anywhere.
row worlds-structure        tools/worlds.py
test_row worlds-contrastive tools/worlds.py contrastive
test_row worlds-contrastive-both tools/worlds.py contrastive-both
test_row worlds-lite0-both tools/worlds.py lite0-both
