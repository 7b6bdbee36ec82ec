"""The preference losses, as one union told apart by ``name``: a new loss is one new file, one name here, one test.

Importable without torch: settings are read and refused before anything heavy is loaded.
"""

from typing import Annotated

from pydantic import Field

from training.losses.apo_down import APODown
from training.losses.apo_zero import APOZero
from training.losses.cpo import CPO
from training.losses.dpo import DPO
from training.losses.dpop import DPOP
from training.losses.hinge import Hinge
from training.losses.ipo import IPO
from training.losses.kto import KTO
from training.losses.listwise import Listwise
from training.losses.odpo import ODPO
from training.losses.orpo import ORPO
from training.losses.robust import Robust
from training.losses.rrhf import RRHF
from training.losses.simpo import SimPO

Loss = Annotated[
    DPO | Robust | Hinge | IPO | DPOP | ODPO | APOZero | APODown | CPO | SimPO | ORPO | KTO | RRHF | Listwise,
    Field(discriminator="name"),
]
