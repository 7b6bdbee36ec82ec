"""The preference losses, as one union: a new loss is one new file, one name here, one test."""

from training.losses.dpo import DPO

Loss = DPO
