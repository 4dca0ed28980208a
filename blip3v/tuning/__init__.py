"""Measures which engine, settings and threads run each graph of a bundle fastest on this machine, within its budget."""

from blip3v.tuning.run import SECONDS, TuneResult, run_tune

__all__ = ["SECONDS", "TuneResult", "run_tune"]
