"""The ablation: rows of settings, each trained with several seeds and evaluated; a tidy CSV of measurements."""
