"""Makes demo.png, the README's picture, from scikit-image's public-domain photographs only.

    PYTHONPATH=. python docs/images/make_demo_picture.py [--checkpoint report/model.ckpt]

Two composed pairs: cut-outs of NASA's astronaut and of the coffee cup (CC0) over gravel (CC0), grass (CC0) and the
rocket (CC0). The committed picture was made with the checkpoint of `cosegflow demo --data none`, which trains on the
cup and not on the astronaut. Each row: both photographs, the found objects, the flow, and b warped onto a.
"""

import argparse
from pathlib import Path

import numpy as np

from cosegflow.data import compose_pair, load_library
from cosegflow.data.sources import Library
from cosegflow.demo import pair_cells
from cosegflow.joint.checkpoint import load_checkpoint
from cosegflow.joint.model import JointModel
from cosegflow.joint.predict import predict
from cosegflow.viz import pair_figure

ROWS = (("astronaut", ("gravel.png", "rocket.jpg"), 3), ("coffee", ("rocket.jpg", "grass.png"), 1))


def main() -> None:
    """Writes demo.png beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a model.ckpt of `cosegflow demo`; default: pretrained only")
    chosen = parser.parse_args().checkpoint
    model = JointModel().eval() if chosen is None else load_checkpoint(chosen, "--checkpoint")
    everything = load_library("none")
    panels = []
    for name, grounds, seed in ROWS:
        library = Library(
            tuple(s for s in everything.stamps if s.name == name),
            tuple(b for b in everything.backgrounds if b.name in grounds),
            everything.origin,
        )
        pair = compose_pair(np.random.default_rng(seed), library, truth=False)
        found = predict(model, pair.image_a[None], pair.image_b[None])
        panels += pair_cells(pair.image_a, pair.image_b, found, 0)[:6]
    pair_figure(panels, Path(__file__).with_name("demo.png"), columns=6, dpi=85)


if __name__ == "__main__":
    main()
