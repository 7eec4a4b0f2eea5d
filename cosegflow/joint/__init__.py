"""The joint training of semantic matching and object co-segmentation; a thin layer over the operations."""
