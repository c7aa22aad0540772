"""What the methods share: dataset -> filters -> model -> losses -> evaluate. Files, devices, processes: plumbing/."""
