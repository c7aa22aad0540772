"""Data sets as they lie on a disk, and files as they are read: layouts, bands, tones, nodata, windows of tiles."""
