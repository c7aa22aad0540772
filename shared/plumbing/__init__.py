"""Files, devices, processes, errors, memory: never needed to understand a method."""
