"""What can be proved: one method of ours, by sampling."""

import argparse

from evaluation.launch.config import RunConfig, configure
from evaluation.launch.processes import launched
from methods import get_method
from methods.errors import UserError


def provable(args: argparse.Namespace) -> RunConfig:
    """What is checked. Raises UserError for what cannot be."""
    if launched():
        raise UserError("lossless.py starts the ranks that a method needs by itself: call it without a launcher")
    config = configure(args)
    if "," in args.methods:
        raise UserError(f"expected one method, got {args.methods}; call lossless.py for each of them")
    spec = get_method(args.methods)
    if not spec.lossless:
        raise UserError(
            f"{args.methods} is another library's loop and not claimed to be lossless; choose a method of ours"
        )
    if not spec.is_lossless(config.options_of(spec)):
        raise UserError(f"{args.methods} is lossy under these options: there is nothing to prove")
    if config.temperature == 0:
        raise UserError("expected a temperature above 0 for the checks of sampling, got 0; greedy is checked anyway")
    return config
