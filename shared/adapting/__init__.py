"""Images beside the pairs: of a region that has none, and of the other modality, drawn."""
