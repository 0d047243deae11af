"""specdec: train, measure and ship speculative-decoding drafts.

The core knows how to run a training job. It knows no algorithm and no model family: those are plugins.
Importing this package, or `specdec_core.config` and `specdec_core.registry`, imports no torch.
"""

__version__ = "0.1.0"
