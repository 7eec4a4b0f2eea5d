"""The names of the data sets; a light module, so that a command can list them before anything heavy is imported."""

DATASETS = (
    "tss",
    "internet",
    "pf-pascal",
    "pf-willow",
    "spair-71k",
    "caltech-101",
    "weizmann-horse",
    "folder",
    "stamps",
)
ALIASES = {
    "spair": "spair-71k",
    "caltech": "caltech-101",
    "weizmann": "weizmann-horse",
    "pfpascal": "pf-pascal",
    "pfwillow": "pf-willow",
}
