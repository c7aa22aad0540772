"""What the methods share: dataset -> filters -> model -> losses -> evaluate.

reading/: data sets, files and tones. adapting/: images of other regions, and drawn ones. mapping/: where on a map an
image lies. plumbing/: files, devices, processes.
"""
